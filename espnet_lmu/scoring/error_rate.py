"""Error rates by Levenshtein alignment (jiwer), counted as NIST's sclite and ESPnet's tables count them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet_lmu.data.files import atomic_open
from espnet_lmu.data.kaldi_dir import check_same_ids, read_table
from espnet_lmu.errors import UserError
from espnet_lmu.tokens import SPACE

Split = Callable[[str], list[str]]

HEADER = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n|---|---|---|---|---|---|---|---|---|"


NOTHING = "*"  # in place of a unit that one side of an alignment lacks


class Column(NamedTuple):
    """A place of an alignment: the units of both sides; C (correct), S (substituted), D (deleted) or I (inserted)."""

    reference: str
    hypothesis: str
    mark: str

    @property
    def width(self) -> int:
        """Characters that the column takes in a line of text."""
        return max(len(self.reference), len(self.hypothesis))


@dataclass
class ErrorRate:
    """Counts over a test set: sentences, reference units (words, characters or tokens) and errors."""

    sentences: int
    units: int
    correct: int
    substitutions: int
    deletions: int
    insertions: int
    wrong_sentences: int

    @classmethod
    def of(cls, marks: np.ndarray) -> ErrorRate:
        """The sum over utterances of the (N, 4) numbers of correct units, substitutions, deletions, insertions."""
        correct, substitutions, deletions, insertions = map(int, marks.sum(axis=0))
        units, wrong = correct + substitutions + deletions, int(marks[:, 1:].any(axis=1).sum())
        return cls(len(marks), units, correct, substitutions, deletions, insertions, wrong)

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors in percent of the reference units."""
        return 100 * self.errors / self.units

    def row(self, name: str) -> str:
        """A line below `HEADER`: counts of sentences and units, the rest in percent."""
        counts = (self.correct, self.substitutions, self.deletions, self.insertions, self.errors)
        rates = [100 * count / self.units for count in counts] + [100 * self.wrong_sentences / self.sentences]
        return f"|{name}|{self.sentences}|{self.units}|" + "".join(f"{rate:.1f}|" for rate in rates)

    def counts(self, units: str = "units") -> str:
        """The counts behind the percentages, in words; `units` says of what."""
        return (
            f"{self.errors} errors in {self.units} {units}: {self.substitutions} substitutions, "
            f"{self.deletions} deletions, {self.insertions} insertions; "
            f"{self.wrong_sentences} of {self.sentences} sentences wrong"
        )


def split_words(text: str) -> list[str]:
    return text.split()


def split_characters(text: str) -> list[str]:
    """Characters, each space between words among them."""
    return [SPACE if character == " " else character for character in " ".join(text.split())]


def split_tokens(bpemodel: str | Path) -> Split:
    """The splitter into the units of a sentencepiece model."""
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(bpemodel))
    except (OSError, RuntimeError):
        raise UserError(f"{bpemodel}: not a BPE model; run stage 5") from None
    return lambda text: processor.encode(" ".join(text.split()), out_type=str)


def read_texts(reference: str | Path, hypothesis: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read two files of ``ID WORDS``; they must have the same ids, and words to compare with."""
    references, hypotheses = read_table(reference), read_table(hypothesis)
    check_same_ids(references, reference, hypotheses, hypothesis)
    if not any(references.values()):
        raise UserError(f"{reference}: no words to score against")
    return references, hypotheses


def align(references: dict[str, str], hypotheses: dict[str, str], split: Split) -> dict[str, list[Column]]:
    """Align every hypothesis with its reference (both with the same ids); the utterances are sorted by id."""
    import jiwer

    ids = sorted(references)
    reference_units = [split(references[key]) for key in ids]
    hypothesis_units = [split(hypotheses[key]) for key in ids]
    # Units hold no spaces, so that jiwer's words are exactly our units.
    output = jiwer.process_words(*([" ".join(units) for units in side] for side in (reference_units, hypothesis_units)))
    aligned = zip(ids, reference_units, hypothesis_units, output.alignments, strict=True)
    return {key: _columns(*item) for key, *item in aligned}


def _columns(reference: list[str], hypothesis: list[str], chunks) -> list[Column]:
    columns = []
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}[chunk.type]
        for i in range(max(len(left), len(right))):
            columns.append(Column(left[i] if left else NOTHING, right[i] if right else NOTHING, mark))
    return columns


def count_marks(alignments: dict[str, list[Column]]) -> np.ndarray:
    """Correct units, substitutions, deletions and insertions of N utterances, (N, 4)."""
    marks = [[column.mark for column in columns] for columns in alignments.values()]
    return np.array([[own.count(mark) for mark in "CSDI"] for own in marks])


def count_errors(marks: np.ndarray) -> np.ndarray:
    """Errors and reference units of N utterances, (2, N), of their marks (N, 4)."""
    return np.stack([marks[:, 1:].sum(axis=1), marks[:, :3].sum(axis=1)])


def score(references: dict[str, str], hypotheses: dict[str, str], split: Split) -> tuple[ErrorRate, str]:
    """The counts of hypotheses against references (with the same ids), and the alignments as text."""
    alignments = align(references, hypotheses, split)
    return ErrorRate.of(count_marks(alignments)), "\n".join(map(_alignment_text, alignments, alignments.values()))


def _alignment_text(utterance: str, columns: list[Column]) -> str:
    """Counts, and a line each of reference and hypothesis, and of S, D, I below the errors."""
    counts = " ".join(str(sum(column.mark == mark for column in columns)) for mark in "CSDI")
    lines = [f"id: {utterance}", f"scores (C S D I): {counts}"]
    for label, row in zip(("REF: ", "HYP: ", "     "), range(3), strict=True):
        cells = [(" " if column[row] == "C" and row == 2 else column[row]).ljust(column.width) for column in columns]
        lines.append((label + " ".join(cells)).rstrip())
    return "\n".join(lines) + "\n"


def write_result(path: str | Path, name: str, total: ErrorRate, alignments: str) -> None:
    """Write the table, the counts and the alignments of a test set."""
    with atomic_open(path) as stream:
        stream.write(f"{HEADER}\n{total.row(name)}\n\n{total.counts()}\n\n{alignments}")


def read_marks(path: Path) -> np.ndarray:
    """Numbers of correct units, substitutions, deletions and insertions, (N, 4), that `write_result` wrote.

    Raises:
        UserError: no such file, or not of that form.
    """
    lines = [line.split(":")[1].split() for line in _result_lines(path) if line.startswith("scores (C S D I):")]
    if not lines or any(len(line) != 4 for line in lines):
        raise UserError(f"{path}: no alignments; run stage 13 again")
    return np.array(lines, dtype=int)


def read_alignments(path: Path) -> dict[str, list[Column]]:
    """The alignments that `write_result` wrote, by id; errors as `read_marks`."""
    lines = _result_lines(path)
    starts = [i for i, line in enumerate(lines) if line.startswith("id: ")]
    alignments = {}
    try:
        for start in starts:
            _, reference, hypothesis, marks = lines[start + 1 : start + 5]
            columns, place = [], len("REF: ")
            for left, right in zip(reference[place:].split(), hypothesis[place:].split(), strict=True):
                columns.append(Column(left, right, marks[place : place + 1].strip() or "C"))
                place += columns[-1].width + 1
            alignments[lines[start].removeprefix("id: ")] = columns
    except ValueError:
        raise UserError(f"{path}: not alignments; run stage 13 again") from None
    return alignments


def _result_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run stage 13 first") from None
