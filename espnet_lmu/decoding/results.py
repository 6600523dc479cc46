"""What decoding leaves: ``text``, ``token``, ``token_int`` and ``score``, lines of ``ID VALUE`` sorted by id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espnet_lmu.data.kaldi_dir import write_table

FILES = ("text", "token", "token_int", "score")


@dataclass
class Hypothesis:
    """The recognized text of an utterance, its tokens, their ids and the log-probability; empty by default."""

    text: str = ""
    token: str = ""
    token_int: str = ""
    score: str = ""


def write_hypotheses(directory: Path, hypotheses: dict[str, Hypothesis]) -> None:
    """Write the four files to `directory`, where ESPnet's recipes keep those of a test set."""
    for name in FILES:
        table = {key: getattr(hypothesis, name) for key, hypothesis in hypotheses.items()}
        write_table(directory / name, table)
