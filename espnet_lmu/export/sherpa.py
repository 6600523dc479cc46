"""Recognition by the package sherpa-onnx with an exported model, in a process of its own: sherpa-onnx ends the process
it runs in where it does not like a file.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from espnet_lmu.errors import UserError


def available() -> bool:
    """Whether sherpa-onnx is installed."""
    return importlib.util.find_spec("sherpa_onnx") is not None


def recognize(model: Path, tokens: Path, recordings: dict[str, np.ndarray], rate: int) -> dict[str, str]:
    """Texts of recordings by greedy search.

    Args:
        model: written as `sherpa.onnx`.
        tokens: its `tokens.txt`.
        recordings: samples (S,) in [-1, 1] by utterance.
        rate: their sampling rate in Hz.

    Raises:
        UserError: sherpa-onnx ended without a result; what it says is on standard error.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_recognize, str(model), str(tokens), recordings, rate).result()
        except BrokenProcessPool:  # it has printed why
            raise UserError(f"{model}: sherpa-onnx refuses it or {tokens.name}") from None
        except RuntimeError as error:
            raise UserError(f"{model}: sherpa-onnx refuses it: {' '.join(str(error).split())}") from None


def _recognize(model: str, tokens: str, recordings: dict[str, np.ndarray], rate: int) -> dict[str, str]:
    import sherpa_onnx

    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(model=model, tokens=tokens, num_threads=1)
    texts = {}
    for key, samples in recordings.items():
        stream = recognizer.create_stream()
        stream.accept_waveform(rate, samples)
        recognizer.decode_stream(stream)
        texts[key] = " ".join(stream.result.text.split())
    return texts
