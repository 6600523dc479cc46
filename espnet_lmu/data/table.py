"""Stage 1 of a corpus of your own: data directories of a CSV table with a line SET,FILE,SPEAKER,TEXT an utterance."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator
from pathlib import Path

from espnet_lmu.data.files import command_line, shorten
from espnet_lmu.data.kaldi_dir import write_data_dir
from espnet_lmu.errors import UserError

_COLUMNS = ("SET", "FILE", "SPEAKER", "TEXT")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of each line that is not empty.

    Raises:
        UserError: the file is missing, not UTF-8 or no CSV.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True, skipinitialspace=True)
            for row in reader:
                if any(map(str.strip, row)):
                    yield reader.line_num, [column.strip() for column in row]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert it") from None
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def make_data_dirs(table: Path, sets: list[str], data_dir: Path) -> None:
    """Write ``DATA_DIR/SET`` for each of `sets`.

    Args:
        table: CSV without a header; FILE is a path from the table's folder, quotes are around what has commas.
        sets: names that SET may have; each needs an utterance.

    Raises:
        UserError: the table cannot be read, or a line of it is not right.
    """
    tables: dict[str, dict[str, dict[str, str]]] = {name: {"wav.scp": {}, "text": {}, "utt2spk": {}} for name in sets}
    lines: dict[str, int] = {}  # of utterances
    speakers: dict[str, dict[str, None]] = {}  # the sets of each, in order
    for line, row in _rows(table):
        place = f"{table}: line {line}"
        if tuple(column.upper() for column in row) == _COLUMNS:
            raise UserError(f"{place}: a header; delete this line")
        if len(row) != len(_COLUMNS):
            columns = f"{len(row)} columns" if len(row) > 1 else "one column"
            raise UserError(f"{place}: {columns}; give {','.join(_COLUMNS)}, with quotes around what has commas")
        name, file, speaker, text = row
        speaker, text = (" ".join(words.split()) for words in (speaker, text))
        if name not in tables:
            raise UserError(f"{place}: the set {name!r} is none of {', '.join(sets)}")
        if not Path(file).name or not speaker:
            raise UserError(f"{place}: an empty {'FILE' if speaker else 'SPEAKER'}")
        if len(file.splitlines()) > 1:
            raise UserError(f"{place}: FILE has a line break")
        utterance = re.sub(r"\s", "_", f"{speaker}-{Path(file).with_suffix('')}".replace("/", "-"))
        if utterance in lines:
            raise UserError(
                f"{place}: {file} of {speaker} would be {utterance}, as line {lines[utterance]} is; rename it"
            )
        lines[utterance] = line
        speakers.setdefault(speaker, {})[name] = None
        tables[name]["wav.scp"][utterance] = str(table.parent / file)
        tables[name]["text"][utterance] = text
        tables[name]["utt2spk"][utterance] = speaker.replace(" ", "_")
    for name, own in tables.items():
        if not own["text"]:
            raise UserError(f"{table}: no line of the set {name}")
    for name, own in tables.items():
        write_data_dir(data_dir / name, own)
    shared = [f"{speaker} ({', '.join(own)})" for speaker, own in speakers.items() if len(own) > 1]
    if shared:
        print(f"warning: {table}: {len(shared)} speakers are in several sets: {shorten(shared)}; error rates on voices")
        print("  that were heard in training are lower than those on others")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.data.table", description=__doc__)
    parser.add_argument("--sets", required=True, metavar="NAMES", help='names of the sets, e.g. "train valid test"')
    parser.add_argument("--output", default="data", type=Path, metavar="DIR", help="where they go (%(default)s)")
    parser.add_argument("table", type=Path, metavar="CSV", help="lines of SET,FILE,SPEAKER,TEXT")
    args = parser.parse_args()
    make_data_dirs(args.table, list(dict.fromkeys(args.sets.split())), args.output)


if __name__ == "__main__":
    command_line(main)
