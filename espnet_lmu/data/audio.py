"""Audio as the stages need it: mono, one sampling rate, complete or refused."""

from __future__ import annotations

import re
from fractions import Fraction
from numbers import Integral
from pathlib import Path

import numpy as np

from espnet_lmu.errors import UserError

_STREAMED = 0x7FFFFFFF - 1024  # A WAV header written to a pipe claims about this size, or twice it.
_LONGEST = 1 << 40  # samples; libsndfile states more where a header is silent
_RATES = range(4000, 384001)  # Hz, of speech and of all equipment
_LARGEST = 1e12  # 32-bit integers as floating-point numbers are far below; powers of larger ones overflow
NO_SAMPLES = f"samples that are not numbers, or beyond {_LARGEST:g}"
_FILTER_SIZE = 1 << 23  # taps, about the product of the terms of the fraction that stands for the ratio of two rates

# Formats whose files libsndfile quietly shortens to what is there, and how it then describes them.
_SHORTENED = ("WAV", "WAVEX", "NIST", "AIFF", "AU", "W64", "RF64", "CAF", "OGG")
_CUT = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_CUT_OGG = re.compile(r"^Ogg ?: Last page lacks an end-of-stream bit\.\nOgg ?: Junk after the last page", re.MULTILINE)


def _promised_frames(path: Path, sound) -> int:
    """Frames that the header promises, about those of the whole file where it is cut off.

    Raises:
        UserError: the file is cut off, and its header does not say how long it was.
    """
    if sound.format in _SHORTENED:
        with open(path, "rb") as stream:
            header = stream.read(1024)
        nist = re.search(rb"sample_count -i (\d+)", header) if header.startswith(b"NIST_1A") else None
        if nist:
            return int(nist[1])
        description = sound.extra_info
        cut = _CUT.search(description)
        if cut and int(cut[2]) < int(cut[1]) < _STREAMED:
            return sound.frames * int(cut[1]) // max(int(cut[2]), 1)
        if _CUT_OGG.search(description):
            raise UserError(f"{path}: cut off: its last page is not complete")
    return sound.frames


def _reason(path: str | Path, error: Exception) -> str:
    """Why a file cannot be read; of one that is not there, libsndfile says "System error."."""
    return (str(error).strip() or "decoder error") if Path(path).exists() else "no such file"


def are_samples(values: np.ndarray) -> bool:
    """Whether all values are numbers of a size that features can be computed of."""
    return not values.size or bool(-_LARGEST < values.min() and values.max() < _LARGEST)


def _refuse_pipe(path: str | Path) -> None:
    """Raise `UserError` for what ends while its header is read, and would then be waited for."""
    if (path := Path(path)).is_fifo() or path.is_char_device() or path.is_socket():
        raise UserError(f"{path}: a pipe or a device; give a file")


def audio_length(path: str | Path) -> tuple[int, int]:
    """Samples per channel and sampling rate in Hz that the header of an audio file states.

    Raises:
        UserError: the file is no audio, or its header does not say how long it is; or a rate that nobody uses.
    """
    import soundfile

    _refuse_pipe(path)
    try:
        with soundfile.SoundFile(path) as sound:
            frames, rate = _promised_frames(Path(path), sound), sound.samplerate
    except (soundfile.SoundFileError, OSError, UnicodeEncodeError) as error:
        raise UserError(f"{path}: not readable audio ({_reason(path, error)})") from None
    if frames > _LONGEST:
        raise UserError(f"{path}: its header does not say how long it is; convert it")
    if frames == 0:
        raise UserError(f"{path}: no samples")
    check_rate(path, rate)
    return frames, rate


def check_rate(path: str | Path, rate: int) -> None:
    """Raise `UserError` for a sampling rate (Hz) that no audio has."""
    if not isinstance(rate, Integral) or rate not in _RATES:
        raise UserError(
            f"{path}: a sampling rate of {rate} Hz; it must be a whole number from {_RATES[0]} to {_RATES[-1]} Hz"
        )


def read_audio(path: str | Path, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """Read an audio file, or a part of it, as mono.

    Args:
        path: any file that soundfile reads.
        start: first sample to read.
        frames: samples to read; None for all.

    Returns:
        samples (frames,) float32 in [-1, 1], channels averaged; sampling rate in Hz.

    Raises:
        UserError: the file cannot be read, is cut off, has no samples or a sample that is not a number; or a rate that
            nobody uses.
    """
    import soundfile

    path = Path(path)
    _refuse_pipe(path)
    try:
        with soundfile.SoundFile(path) as sound:
            promised = _promised_frames(path, sound) - start if frames is None else frames
            if start:
                sound.seek(start)
            samples = sound.read(-1 if frames is None else frames, dtype="float32")
            samples = samples if samples.ndim == 1 else samples.mean(axis=1)
            rate = sound.samplerate
    except UserError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError) as error:  # ValueError: GSM, which cannot be sought in
        raise UserError(f"{path}: not readable audio, or cut off ({_reason(path, error)})") from None
    check_rate(path, rate)
    if len(samples) < promised:
        raise UserError(f"{path}: cut off: {len(samples)} of {promised} samples")
    if len(samples) == 0:
        raise UserError(f"{path}: no samples")
    if not are_samples(samples):
        raise UserError(f"{path}: {NO_SAMPLES}")
    return samples, rate


def resample(samples: np.ndarray, rate: int, new_rate: int, speed: float = 1.0) -> np.ndarray:
    """Bring (frames,) float32 samples from `rate` to `new_rate` (Hz) and play them `speed` times as fast.

    Faster is the same as a higher original rate, for which a windowed-sinc filter is made; pitch changes with speed.
    """
    import torch
    import torchaudio

    # Rates whose greatest common divisor is small (44.1 kHz, 1.05 times as fast) would need a filter of a gigabyte, so
    # the rate is changed first. The new one, 16 kHz say, times a speed of two decimals has a large divisor. Usual rates
    # are exact as fractions; of odd ones (16,001 Hz) the nearest with a small filter is off by 0.02 % or less.
    for source in (rate, round(new_rate * speed)):
        if source != new_rate:
            ratio = Fraction(source, new_rate)
            ratio = ratio.limit_denominator(int((_FILTER_SIZE / ratio) ** 0.5))
            samples = torchaudio.functional.resample(
                torch.from_numpy(samples), ratio.numerator, ratio.denominator
            ).numpy()
    return samples
