"""Error rates by Levenshtein alignment (jiwer), counted as NIST's sclite and ESPnet's tables count them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.data.files import atomic_open
from espnet_lmu.data.kaldi_dir import check_same_ids, read_table
from espnet_lmu.errors import UserError
from espnet_lmu.tokens import SPACE

Split = Callable[[str], list[str]]

HEADER = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n|---|---|---|---|---|---|---|---|---|"


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

    def counts(self) -> str:
        """The counts behind the percentages, in words."""
        return (
            f"{self.errors} errors in {self.units}: {self.substitutions} substitutions, {self.deletions} deletions, "
            f"{self.insertions} insertions; {self.wrong_sentences} of {self.sentences} sentences wrong"
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


def score(references: dict[str, str], hypotheses: dict[str, str], split: Split) -> tuple[ErrorRate, str]:
    """Align every hypothesis with its reference (both with the same ids).

    Returns:
        the counts, and the alignments as text: for each utterance its counts and a line each of reference and
        hypothesis, ``*`` where one has nothing, and of S, D, I below the errors.
    """
    import jiwer

    ids = sorted(references)
    reference_units = [split(references[key]) for key in ids]
    hypothesis_units = [split(hypotheses[key]) for key in ids]
    # Units hold no spaces, so that jiwer's words are exactly our units.
    output = jiwer.process_words(*([" ".join(units) for units in side] for side in (reference_units, hypothesis_units)))
    total = ErrorRate(
        sentences=len(ids),
        units=sum(map(len, reference_units)),
        correct=output.hits,
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        wrong_sentences=sum(r != h for r, h in zip(reference_units, hypothesis_units, strict=True)),
    )
    aligned = zip(ids, reference_units, hypothesis_units, output.alignments, strict=True)
    return total, "\n".join(_alignment(*item) for item in aligned)


def count_errors(references: dict[str, str], hypotheses: dict[str, str], split: Split) -> np.ndarray:
    """Errors of each utterance and units of its reference, (2, N), in the order of the ids."""
    import jiwer

    ids = sorted(references)
    sides = ([" ".join(split(texts[key])) for key in ids] for texts in (references, hypotheses))
    alignments = jiwer.process_words(*sides).alignments
    wrong = [[chunk for chunk in chunks if chunk.type != "equal"] for chunks in alignments]
    errors = [
        sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in chunks) for chunks in wrong
    ]
    return np.array([errors, [len(split(references[key])) for key in ids]])


def _alignment(utterance: str, reference: list[str], hypothesis: list[str], chunks) -> str:
    columns: list[tuple[str, str, str]] = []
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}[chunk.type]
        for i in range(max(len(left), len(right))):
            columns.append((left[i] if left else "*", right[i] if right else "*", mark))
    counts = {mark: sum(column[2] == mark for column in columns) for mark in ("", "S", "D", "I")}
    lines = [f"id: {utterance}", "scores (C S D I): " + " ".join(str(count) for count in counts.values())]
    for label, row in zip(("REF: ", "HYP: ", "     "), range(3), strict=True):
        cells = [column[row].ljust(max(map(len, column))) for column in columns]
        lines.append((label + " ".join(cells)).rstrip())
    return "\n".join(lines) + "\n"


def write_result(path: str | Path, name: str, total: ErrorRate, alignments: str) -> None:
    """Write the table, the counts and the alignments of a test set."""
    with atomic_open(path) as stream:
        stream.write(f"{HEADER}\n{total.row(name)}\n\n{total.counts()}\n\n{alignments}")
