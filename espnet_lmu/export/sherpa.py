"""Recognition by the package sherpa-onnx with an exported model, in a process of its own: sherpa-onnx ends the process
it runs in where it does not like a file.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet_lmu.errors import UserError


@dataclass(frozen=True)
class Family:
    """One of sherpa-onnx's kinds of CTC model.

    Args:
        recognizer: its class of the package.
        constructor: the method that loads a model.
        silence: samples of silence to give an online recognizer after the recording, so that it decodes all of it: it
            takes whole chunks only, and each of them not before there is a feature frame more.
    """

    recognizer: str
    constructor: str
    silence: int = 0

    def options(self, rate: int) -> dict[str, int]:
        """Options of the constructor for a model of `rate` Hz, besides its files."""
        return {} if self == WAVE else {"sample_rate": rate}

    def usage(self, rate: int) -> str:
        """How to call it for a model of `rate` Hz."""
        options = "".join(f", {name}={value}" for name, value in self.options(rate).items())
        call = f"sherpa_onnx.{self.recognizer}.{self.constructor}(model=..., tokens=...{options})"
        if self.silence:
            call += f"; after the recording, {self.silence} samples of silence or more, then input_finished()"
        return call


class Recognized(NamedTuple):
    """What sherpa-onnx makes of a recording; it writes a space for ▁ in tokens."""

    text: str
    tokens: list[str]


WAVE = Family("OfflineRecognizer", "from_omnilingual_asr_ctc")  # a waveform of any level to log posteriors
OFFLINE = Family("OfflineRecognizer", "from_zipformer_ctc")  # filterbanks to log posteriors


def online(chunk: int) -> Family:
    """Filterbanks of a chunk of so many samples and a state to log posteriors and the next state."""
    return Family("OnlineRecognizer", "from_zipformer2_ctc", silence=chunk)


def available() -> bool:
    """Whether sherpa-onnx is installed."""
    return importlib.util.find_spec("sherpa_onnx") is not None


def recognize(
    model: Path, tokens: Path, recordings: dict[str, np.ndarray], rate: int, family: Family, batch: int = 1
) -> dict[str, Recognized]:
    """Recognize recordings by greedy search.

    Args:
        model: an exported file.
        tokens: its `tokens.txt`.
        recordings: samples (S,) in [-1, 1] by utterance.
        rate: their sampling rate and the model's, in Hz.
        family: what kind of model it is.
        batch: recordings that are decoded together.

    Raises:
        UserError: sherpa-onnx ended without a result; what it says is on standard error.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_recognize, str(model), str(tokens), recordings, rate, family, batch).result()
        except BrokenProcessPool:  # it has printed why
            raise UserError(f"{model}: sherpa-onnx refuses it or {tokens.name}") from None
        except RuntimeError as error:
            raise UserError(f"{model}: sherpa-onnx refuses it: {' '.join(str(error).split())}") from None


def _recognize(
    model: str, tokens: str, recordings: dict[str, np.ndarray], rate: int, family: Family, batch: int
) -> dict[str, Recognized]:
    import sherpa_onnx

    load = getattr(getattr(sherpa_onnx, family.recognizer), family.constructor)
    recognizer = load(model=model, tokens=tokens, num_threads=1, **family.options(rate))
    decode = _decode_online if family.silence else _decode_offline
    results, keys = {}, list(recordings)
    for begin in range(0, len(keys), batch):
        together = keys[begin : begin + batch]
        streams = [recognizer.create_stream() for _ in together]
        for stream, key in zip(streams, together, strict=True):
            stream.accept_waveform(rate, recordings[key])
        results |= zip(together, decode(recognizer, streams, rate, family.silence), strict=True)
    return results


def _decode_offline(recognizer, streams: list, rate: int, silence: int) -> list[Recognized]:
    recognizer.decode_streams(streams)
    return [Recognized(" ".join(stream.result.text.split()), stream.result.tokens) for stream in streams]


def _decode_online(recognizer, streams: list, rate: int, silence: int) -> list[Recognized]:
    for stream in streams:
        stream.accept_waveform(rate, np.zeros(silence, np.float32))
        stream.input_finished()
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
    return [
        Recognized(" ".join(recognizer.get_result(stream).split()), recognizer.tokens(stream)) for stream in streams
    ]
