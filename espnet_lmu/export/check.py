"""What exported files compute, beside the model in PyTorch: largest differences, speed, error rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet_lmu.data.audio import read_audio
from espnet_lmu.data.kaldi_dir import check_same_ids, read_table
from espnet_lmu.decoding.greedy import GreedyDecoder, best_path, load_input
from espnet_lmu.errors import UserError
from espnet_lmu.scoring.error_rate import score, split_words

# Largest difference of log posteriors between PyTorch and a float32 file. They differ by some 1e-5 where an operation
# rounds otherwise; a wrong graph is off by more than 0.1.
TOLERANCE = 1e-3


def check_difference(name: str, expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference between log posteriors; raises UserError above `TOLERANCE`."""
    shapes = [array.shape for array in expected], [array.shape for array in found]
    if shapes[0] != shapes[1]:
        raise UserError(f"{name}: shapes {shapes[1]} where PyTorch gives {shapes[0]}; nothing was written")
    difference = max(float(np.abs(e - f).max()) for e, f in zip(expected, found, strict=True))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{name}: differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}; nothing was written"
        )
    return difference


@dataclass
class Utterance:
    """Features (T, F), samples (S,) at the model's rate where there is audio, and the reference text."""

    features: np.ndarray
    samples: np.ndarray | None
    text: str


def read_utterances(directory: Path, decoder: GreedyDecoder, rate: int) -> dict[str, Utterance]:
    """Utterances of a data directory with `text` and `feats.scp`, or `wav.scp`.

    Raises:
        UserError: a file is missing, or not of the model's rate or kind of features.
    """
    import torch

    from espnet_lmu.data.format import fbank

    texts = read_table(directory / "text")
    if decoder.input_size is not None and (directory / "feats.scp").exists():
        scp = read_table(directory / "feats.scp")
        check_same_ids(scp, directory / "feats.scp", texts, directory / "text")
        return {key: Utterance(load_input(path, decoder), None, texts[key]) for key, path in scp.items()}
    scp = read_table(directory / "wav.scp")
    check_same_ids(scp, directory / "wav.scp", texts, directory / "text")
    utterances = {}
    for key, path in scp.items():
        samples, found = read_audio(path)
        if found != rate:
            raise UserError(f"{path}: sampling rate {found} Hz, but the model was trained on {rate} Hz; see stage 3")
        if decoder.input_size is not None:
            features = fbank(samples, rate)
        else:
            with torch.inference_mode():
                frames = decoder.model.frontend(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0]
            features = frames[0].numpy()
        utterances[key] = Utterance(features, samples, texts[key])
    return utterances


@dataclass
class Candidate:
    """One of what is compared.

    Args:
        name: what the table calls it.
        size: bytes of its file.
        run: an utterance to log posteriors (T', V).
    """

    name: str
    size: int
    run: Callable[[Utterance], np.ndarray]
    seconds: float = 0.0
    texts: dict[str, str] = field(default_factory=dict)


HEADER = "|model|size (MB)|CPU ms per utterance|WER (%)|texts unlike PyTorch's|\n|---|---|---|---|---|"


def compare(utterances: dict[str, Utterance], decoder: GreedyDecoder, candidates: list[Candidate]) -> None:
    """Decode every utterance alone with each candidate in turn, and note texts and times."""
    import torch

    for key, utterance in utterances.items():
        for candidate in candidates:
            start = time.thread_time()
            log_probs = candidate.run(utterance)
            candidate.seconds += time.thread_time() - start
            ids, _ = best_path(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]))[0]
            candidate.texts[key] = decoder.text([token for token in ids if token != decoder.sos_eos])


def row(candidate: Candidate, pytorch: Candidate, utterances: dict[str, Utterance]) -> str:
    """A line below `HEADER`."""
    total, _ = score({key: utterance.text for key, utterance in utterances.items()}, candidate.texts, split_words)
    unlike = sum(candidate.texts[key] != pytorch.texts[key] for key in utterances)
    duration = f"{1000 * candidate.seconds / len(utterances):.1f}" if candidate.seconds else ""
    return f"|{candidate.name}|{candidate.size / 2**20:.2f}|{duration}|{total.rate:.1f}|{unlike} of {len(utterances)}|"
