"""What exported files compute, beside the model in PyTorch: largest differences, speed, error rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from espnet_lmu.data.features import check_features, read_features
from espnet_lmu.data.format import fbank, feature_settings
from espnet_lmu.data.kaldi_dir import check_same_ids, excerpts, read_table
from espnet_lmu.data.segments import read_excerpt
from espnet_lmu.decoding.greedy import GreedyDecoder, best_path, load_input
from espnet_lmu.encoder.streaming import stream
from espnet_lmu.errors import UserError
from espnet_lmu.scoring.error_rate import score, split_words

# Largest difference of log posteriors between PyTorch and a float32 file. They differ by some 1e-5 where an operation
# rounds otherwise; a wrong graph is off by more than 0.1.
TOLERANCE = 1e-3


Run = Callable[..., list[np.ndarray]]  # a file: arrays to arrays, both in its order


def reference(model: nn.Module, x: Tensor) -> np.ndarray:
    """PyTorch's log posteriors (T', V) of features (T, F).

    One utterance at a time: ESPnet's utterance_mvn with norm_vars counts the padding of a batch.
    """
    with torch.inference_mode():
        x, lengths = x[None].clone(), torch.tensor([len(x)])  # normalization may work in place
        if model.normalize is not None:
            x, lengths = model.normalize(x, lengths)
        ctc = model.ctc if model.encoder.interctc_use_conditioning else None
        encoded, _, _ = model.encoder(x, lengths, ctc=ctc)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        return model.ctc.log_softmax(encoded)[0].numpy()


def streaming_reference(model: nn.Module, x: Tensor, chunk: int) -> np.ndarray:
    """PyTorch's log posteriors (B, T', V) of features (B, T, F) that arrive in two parts; `chunk` in encoder frames."""
    ctc = model.ctc if model.encoder.interctc_use_conditioning else None
    outputs, state = [], None
    with torch.inference_mode():
        x = x.clone()
        if model.normalize is not None:
            x, _ = model.normalize(x, torch.full((len(x),), x.size(1)))
        half = x.size(1) // 2
        for part, is_final in ((x[:, :half], False), (x[:, half:], True)):
            y, state = stream(model.encoder, part, state, is_final, ctc, chunk)
            outputs.append(model.ctc.log_softmax(y))
        return torch.cat(outputs, dim=1).numpy()


def run_chunks(step: Run, state: list[np.ndarray], x: np.ndarray, shift: int, window: int) -> np.ndarray:
    """Log posteriors (B, T', V) of features (B, T, F) by a streaming file.

    Args:
        step: the file; see `espnet_lmu.export.streaming.StreamingGraph`.
        state: before the first chunk.
        shift: feature frames from one chunk to the next.
        window: feature frames that a chunk needs.
    """
    outputs = []
    for start in range(0, x.shape[1], shift):
        part = x[:, start : start + window]
        lengths = np.full(len(x), part.shape[1])
        padded = np.pad(part, ((0, 0), (0, window - part.shape[1]), (0, 0)))
        log_probs, counts, *state = step(padded, lengths, *state)
        outputs.append(log_probs[:, : counts[0]])
    return np.concatenate(outputs, axis=1)


def plausible_features(model: nn.Module, batch: int, frames: int, size: int) -> Tensor:
    """Random features (B, T, F) of the size that the model's normalization expects."""
    x = torch.randn(batch, frames, size, generator=torch.Generator().manual_seed(0))
    if hasattr(model.normalize, "mean"):
        return (x * model.normalize.std + model.normalize.mean).float()
    return 2 * x


def check_difference(name: str, expected: list[np.ndarray], found: list[np.ndarray]) -> None:
    """Print the largest difference between log posteriors; raise UserError if it is above `TOLERANCE`."""
    shapes = [array.shape for array in expected], [array.shape for array in found]
    if shapes[0] != shapes[1]:
        raise UserError(f"{name}: shapes {shapes[1]} where PyTorch gives {shapes[0]}; nothing was written")
    difference = np.max([np.abs(e - f).max() for e, f in zip(expected, found, strict=True)])
    if not difference <= TOLERANCE:
        raise UserError(
            f"{name}: differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}; nothing was written"
        )
    print(f"{name}: at most {difference:.1e} from PyTorch", flush=True)


@dataclass
class Utterance:
    """Features (T, F), samples (S,) at the model's rate where there is audio, and the reference text."""

    features: np.ndarray
    samples: np.ndarray | None
    text: str


def features_of(decoder: GreedyDecoder, samples: np.ndarray, rate: int) -> np.ndarray:
    """What the model's normalization takes for samples (S,): features (T, F); none of samples too few for a frame."""
    if decoder.input_size is not None:
        return fbank(samples, rate)
    if len(samples) < decoder.minimum_length:
        return np.zeros((0, decoder.model.frontend.output_size()), np.float32)
    with torch.inference_mode():
        features, _ = decoder.model.frontend(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    return features[0].numpy()


def read_utterances(directory: Path, decoder: GreedyDecoder, rate: int) -> dict[str, Utterance]:
    """Utterances of a data directory with `text` and `feats.scp`, or `wav.scp`.

    Raises:
        UserError: a file is missing, or not of the model's rate or kind of features, or there are no words.
    """
    texts = read_table(directory / "text")
    if not any(texts.values()):
        raise UserError(f"{directory / 'text'}: no words to score against")
    if decoder.input_size is not None and (directory / "feats.scp").exists():
        scp = read_table(directory / "feats.scp")
        check_same_ids(scp, directory / "feats.scp", texts, directory / "text")
        check_features("the model", feature_settings(rate), read_features(directory), str(directory))
        return {key: Utterance(load_input(path, decoder), None, texts[key]) for key, path in scp.items()}
    names = [name for name in ("wav.scp", "segments") if (directory / name).exists() or name == "wav.scp"]
    audio = excerpts({name: read_table(directory / name) for name in names})
    check_same_ids(audio, directory / names[-1], texts, directory / "text")
    utterances = {}
    for key, excerpt in audio.items():
        samples, found = read_excerpt(excerpt)
        if found != rate:
            raise UserError(
                f"{excerpt.path}: sampling rate {found} Hz, but the model was trained on {rate} Hz; see stage 3"
            )
        utterances[key] = Utterance(features_of(decoder, samples, rate), samples, texts[key])
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
    leads: dict[str, float] = field(default_factory=dict)  # see `compare`


HEADER = "|model|size (MB)|CPU ms per utterance|WER (%)|texts unlike PyTorch's|\n|---|---|---|---|---|"


def compare(utterances: dict[str, Utterance], decoder: GreedyDecoder, candidates: list[Candidate]) -> None:
    """Decode every utterance alone with each candidate in turn, and note texts and times.

    The first candidate is PyTorch. Of the others also its `leads`: how far PyTorch's best token is ahead of the
    candidate's, in log posteriors, at the surest of the frames where the two are not the same.
    """
    for key, utterance in utterances.items():
        expected = None
        for candidate in candidates:
            start = time.thread_time()
            log_probs = candidate.run(utterance)
            candidate.seconds += time.thread_time() - start
            ids, _ = best_path(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]))[0]
            candidate.texts[key] = decoder.text([token for token in ids if token != decoder.sos_eos])
            expected = log_probs if expected is None else expected
            best = log_probs.argmax(axis=1)
            candidate.leads[key] = float((expected.max(axis=1) - expected[np.arange(len(best)), best]).max())


def row(candidate: Candidate, pytorch: Candidate, utterances: dict[str, Utterance]) -> str:
    """A line below `HEADER`."""
    total, _ = score({key: utterance.text for key, utterance in utterances.items()}, candidate.texts, split_words)
    unlike = len(_unlike(candidate, pytorch))
    duration = f"{1000 * candidate.seconds / len(utterances):.1f}" if candidate.seconds else ""
    return f"|{candidate.name}|{candidate.size / 2**20:.2f}|{duration}|{total.rate:.1f}|{unlike} of {len(utterances)}|"


def _unlike(candidate: Candidate, pytorch: Candidate) -> list[str]:
    return [key for key, text in pytorch.texts.items() if candidate.texts[key] != text]


def describe_unlike(candidate: Candidate, pytorch: Candidate, limit: int = 5) -> list[str]:
    """The first `limit` utterances whose text is not PyTorch's, a line each."""
    lines = []
    for key in _unlike(candidate, pytorch)[:limit]:
        line = f'{candidate.name}: {key}: "{candidate.texts[key]}", PyTorch: "{pytorch.texts[key]}"'
        if key in candidate.leads:
            line += f" (ahead by {candidate.leads[key]:.2g})"
        lines.append(line)
    return lines
