"""Text that language models learn from: transcripts, and further text where there is some.

``python -m espnet_lmu.lm.text --output FILE TEXT ...`` writes lines of ``ID WORDS``, as ESPnet's lm_train reads them.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

from espnet_lmu.data.files import atomic_open, command_line
from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.errors import UserError


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file, or of one packed by gzip, each without the spaces around it.

    Raises:
        UserError: the file is missing or not UTF-8 text.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
            for line in lines:
                yield line.strip()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not UTF-8 text, plain or packed by gzip ({error})") from None


def read_sentences(path: Path) -> Iterator[str]:
    """The words of each line of ``ID WORDS``."""
    for line in read_lines(path):
        words = line.split(maxsplit=1)[1:]
        if words:
            yield words[0]


def write_text(output: Path, transcripts: list[Path], further: list[Path]) -> None:
    """Write one file of ``ID WORDS``.

    Args:
        transcripts: files of ``ID WORDS``; ids must not repeat.
        further: files of a sentence a line, which get ids of their own.
    """
    ids: set[str] = set()
    sentences = words = 0
    with atomic_open(output) as stream:
        for path in transcripts:
            table = read_table(path)
            if repeated := next((key for key in table if key in ids), None):
                raise UserError(f"{path}: the id {repeated} is in another text too; give each text once")
            ids.update(table)
            for key, text in table.items():
                if text:
                    stream.write(f"{key} {text}\n")
                    sentences, words = sentences + 1, words + len(text.split())
        for file, path in enumerate(further, 1):
            for number, line in enumerate(read_lines(path), 1):
                if line:
                    stream.write(f"further{file}-{number:09d} {line}\n")
                    sentences, words = sentences + 1, words + len(line.split())
        if not sentences:
            raise UserError(f"{', '.join(map(str, transcripts + further))}: no words")
    print(f"{output}: {sentences} sentences, {words} words")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.lm.text", description=__doc__)
    parser.add_argument("--further_text", type=Path, nargs="*", default=[], metavar="FILE", help="a sentence a line")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="what to write")
    parser.add_argument("transcripts", type=Path, nargs="+", metavar="TEXT", help="lines of ID WORDS")
    args = parser.parse_args()
    write_text(args.output, args.transcripts, args.further_text)


if __name__ == "__main__":
    command_line(main)
