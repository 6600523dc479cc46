"""Kaldi-style data directories: ``wav.scp``, ``text``, ``utt2spk``, ``spk2utt``, sorted as ``LC_ALL=C sort`` does.

``wav.scp`` has a line for each utterance; with a file ``segments``, a line for each recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from espnet_lmu.data.files import atomic_open, shorten
from espnet_lmu.data.segments import Excerpt, parse_segment
from espnet_lmu.errors import UserError

OPTIONAL_TABLES = ("segments", "utt2speed")  # stage 2 writes utt2speed


def read_lines(path: str | Path) -> Iterator[tuple[int, str, str]]:
    """Number, ID and value of the lines ``ID VALUE`` of a table; an absent value is ``""``.

    Raises:
        UserError: the file is missing, not UTF-8 or has an empty line.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:  # with the mark that Windows puts at the start, or without
            for number, line in enumerate(stream, 1):
                fields = line.split(maxsplit=1)
                if not fields:
                    raise UserError(f"{path}: line {number} is empty; delete it")
                yield number, fields[0], fields[1].strip() if len(fields) == 2 else ""
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it first") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert it") from None


def read_table(path: str | Path) -> dict[str, str]:
    """Read lines of ``ID VALUE`` into a dict in the file's order.

    Raises:
        UserError: as `read_lines`, or the same ID is there twice.
    """
    table: dict[str, str] = {}
    for number, key, value in read_lines(path):
        if key in table:
            raise UserError(f"{path}: line {number}: the id {key} appears twice; ids must be unique")
        table[key] = value
    return table


def write_table(path: str | Path, table: dict[str, str]) -> None:
    """Write lines of ``ID VALUE`` sorted by id (UTF-8 order, which is that of ``LC_ALL=C sort``).

    Raises:
        UserError: an id is empty or has white space, so that its line could not be read again.
    """
    for key in table:
        if key.split() != [key]:
            raise UserError(f"{path}: the id {key!r} is empty or has a space; write _ for it, say")
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
    """Write the given tables (``{"wav.scp": {...}, "text": {...}, "utt2spk": {...}}``) and ``spk2utt`` in step.

    A ``segments`` or ``utt2speed`` of an earlier run that is not among them is deleted.
    """
    directory = Path(directory)
    for name in OPTIONAL_TABLES:
        if name not in tables:
            (directory / name).unlink(missing_ok=True)
    speakers: dict[str, list[str]] = {}
    for utterance in sorted(tables["utt2spk"]):
        speakers.setdefault(tables["utt2spk"][utterance], []).append(utterance)
    for name, table in tables.items():
        write_table(directory / name, table)
    write_table(directory / "spk2utt", {speaker: " ".join(ids) for speaker, ids in speakers.items()})


def read_data_dir(directory: str | Path) -> dict[str, dict[str, str]]:
    """Read and check ``wav.scp``, ``text`` and ``utt2spk`` (and ``segments`` and ``utt2speed`` where they are).

    Raises:
        UserError: a file is missing or empty, ids differ, a segment is none, a recording does not exist or is a pipe.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such data directory; run the stage that makes it, or check the set's name")
    names = ["wav.scp", "text", "utt2spk", *(name for name in OPTIONAL_TABLES if (directory / name).exists())]
    tables = {name: read_table(directory / name) for name in names}
    recordings = tables["wav.scp"]
    reference = "segments" if "segments" in tables else "wav.scp"
    if not tables[reference]:
        raise UserError(f"{directory}/{reference}: no utterances")
    for name, table in tables.items():
        if name != "wav.scp" or reference == "wav.scp":
            check_same_ids(tables[reference], directory / reference, table, directory / name)
    speakerless = [key for key, speaker in tables["utt2spk"].items() if not speaker]
    if speakerless:
        raise UserError(f"{directory}/utt2spk: no speaker for {shorten(speakerless)}")
    for key, value in tables.get("segments", {}).items():
        try:
            recording, _, _ = parse_segment(value)
        except UserError as error:
            raise UserError(f"{directory}/segments: {key}: {error}") from None
        if recording not in recordings:
            raise UserError(f"{directory}/segments: {key}: the recording {recording} is not in {directory}/wav.scp")
    for key, path in recordings.items():
        refuse_pipe(directory, key, path)
        if not Path(path).is_file():
            raise UserError(f"{directory}/wav.scp: {key}: no such file: {path or '(no path)'}")
    return tables


def refuse_pipe(directory: Path, key: str, path: str) -> None:
    """Raise `UserError` for an entry of ``wav.scp`` that is a command."""
    if path.endswith("|"):
        raise UserError(f"{directory}/wav.scp: {key}: commands (lines ending in |) are not supported; give files")


def excerpts(tables: dict[str, dict[str, str]]) -> dict[str, Excerpt]:
    """The audio of each utterance of a data directory, in order of the ids."""
    if "segments" not in tables:
        return {key: Excerpt(tables["wav.scp"][key]) for key in sorted(tables["wav.scp"])}
    audio = {}
    for key in sorted(tables["segments"]):
        recording, start, end = parse_segment(tables["segments"][key])
        audio[key] = Excerpt(tables["wav.scp"][recording], start, end)
    return audio
