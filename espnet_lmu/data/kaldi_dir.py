"""Kaldi-style data directories: ``wav.scp``, ``text``, ``utt2spk``, ``spk2utt``, sorted as ``LC_ALL=C sort`` does.

``python -m espnet_lmu.data.kaldi_dir DIR ...`` sorts and checks directories that a recipe's ``local/data.sh`` made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lmu.data.files import atomic_open, command_line, shorten
from espnet_lmu.errors import UserError


def read_table(path: str | Path) -> dict[str, str]:
    """Read lines of ``ID VALUE`` into a dict in the file's order; an absent value is ``""``.

    Raises:
        UserError: the file is missing, not UTF-8, has an empty line or the same ID twice.
    """
    path = Path(path)
    table: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                fields = line.split(maxsplit=1)
                if not fields:
                    raise UserError(f"{path}: line {number} is empty; delete it")
                if fields[0] in table:
                    raise UserError(f"{path}: line {number}: the id {fields[0]} appears twice; ids must be unique")
                table[fields[0]] = fields[1].strip() if len(fields) == 2 else ""
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it first") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert it") from None
    return table


def write_table(path: str | Path, table: dict[str, str]) -> None:
    """Write lines of ``ID VALUE`` sorted by id (UTF-8 order, which is that of ``LC_ALL=C sort``)."""
    with atomic_open(path) as stream:
        for key in sorted(table):
            stream.write(f"{key} {table[key]}\n" if table[key] else f"{key}\n")


def check_same_ids(
    reference: dict[str, str], reference_path: str | Path, table: dict[str, str], path: str | Path
) -> None:
    """Raise `UserError` naming ids that only one of two tables has."""
    missing = [key for key in reference if key not in table]
    if missing:
        raise UserError(f"{path}: {len(missing)} ids of {reference_path} are missing: {shorten(missing)}")
    extra = [key for key in table if key not in reference]
    if extra:
        raise UserError(f"{path}: {len(extra)} ids are not in {reference_path}: {shorten(extra)}")


def write_data_dir(directory: str | Path, tables: dict[str, dict[str, str]]) -> None:
    """Write the given tables (``{"wav.scp": {...}, "text": {...}, "utt2spk": {...}}``) and ``spk2utt`` in step."""
    directory = Path(directory)
    speakers: dict[str, list[str]] = {}
    for utterance in sorted(tables["utt2spk"]):
        speakers.setdefault(tables["utt2spk"][utterance], []).append(utterance)
    for name, table in tables.items():
        write_table(directory / name, table)
    write_table(directory / "spk2utt", {speaker: " ".join(ids) for speaker, ids in speakers.items()})


def read_data_dir(directory: str | Path) -> dict[str, dict[str, str]]:
    """Read and check ``wav.scp``, ``text`` and ``utt2spk`` (and ``utt2speed`` where stage 2 left one).

    Raises:
        UserError: a file is missing or empty, ids differ, a recording does not exist or is a pipe.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such data directory; run the stage that makes it, or check the set's name")
    if (directory / "segments").exists():
        raise UserError(f"{directory}/segments: not supported; cut the recordings into one file per utterance")
    tables = {name: read_table(directory / name) for name in ("wav.scp", "text", "utt2spk")}
    if (directory / "utt2speed").exists():
        tables["utt2speed"] = read_table(directory / "utt2speed")
    recordings = tables["wav.scp"]
    if not recordings:
        raise UserError(f"{directory}/wav.scp: no utterances")
    for name, table in tables.items():
        check_same_ids(recordings, directory / "wav.scp", table, directory / name)
    speakerless = [key for key, speaker in tables["utt2spk"].items() if not speaker]
    if speakerless:
        raise UserError(f"{directory}/utt2spk: no speaker for {shorten(speakerless)}")
    for key, path in recordings.items():
        if path.endswith("|"):
            raise UserError(f"{directory}/wav.scp: {key}: commands (lines ending in |) are not supported; give files")
        if not Path(path).is_file():
            raise UserError(f"{directory}/wav.scp: {key}: no such file: {path or '(no path)'}")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.kaldi_dir",
        description="Sort and check Kaldi-style data directories (wav.scp, text, utt2spk) and write their spk2utt.",
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", help="data directory, e.g. data/train")
    for directory in parser.parse_args().directories:
        tables = read_data_dir(directory)
        write_data_dir(directory, tables)
        speakers = len(set(tables["utt2spk"].values()))
        print(f"{directory}: {len(tables['text'])} utterances, {speakers} speakers")


if __name__ == "__main__":
    command_line(main)
