"""Audio as the stages need it: mono, one sampling rate, complete or refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from espnet_lmu.errors import UserError

_STREAMED = 0x7FFFFFFF - 1024  # A WAV header written to a pipe claims about this size, or twice it.
_LONGEST = 1 << 40  # samples; libsndfile states more where a header is silent


def _promised_frames(path: Path, sound) -> int:
    """Frames that the header promises; libsndfile quietly shortens WAV and NIST files to what is there."""
    if sound.format in ("WAV", "WAVEX", "NIST"):
        with open(path, "rb") as stream:
            header = stream.read(1024)
        nist = re.search(rb"sample_count -i (\d+)", header) if header.startswith(b"NIST_1A") else None
        if nist:
            return int(nist[1])
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
        if cut and int(cut[2]) < int(cut[1]) < _STREAMED:
            return sound.frames * int(cut[1]) // max(int(cut[2]), 1)
    return sound.frames


def _reason(path: str | Path, error: Exception) -> str:
    """Why a file cannot be read; of one that is not there, libsndfile says "System error."."""
    return (str(error).strip() or "decoder error") if Path(path).exists() else "no such file"


def audio_length(path: str | Path) -> tuple[int, int]:
    """Samples per channel and sampling rate in Hz that the header of an audio file states.

    Raises:
        UserError: the file is no audio, or its header does not say how long it is.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as sound:
            frames, rate = _promised_frames(Path(path), sound), sound.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: not readable audio ({_reason(path, error)})") from None
    if frames > _LONGEST:
        raise UserError(f"{path}: its header does not say how long it is; convert it")
    if frames == 0:
        raise UserError(f"{path}: no samples")
    return frames, rate


def read_audio(path: str | Path, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """Read an audio file, or a part of it, as mono.

    Args:
        path: any file that soundfile reads.
        start: first sample to read.
        frames: samples to read; None for all.

    Returns:
        samples (frames,) float32 in [-1, 1], channels averaged; sampling rate in Hz.

    Raises:
        UserError: the file cannot be read, is cut off, has no samples or a sample that is not a number.
    """
    import soundfile

    path = Path(path)
    try:
        with soundfile.SoundFile(path) as sound:
            promised = _promised_frames(path, sound) - start if frames is None else frames
            if start:
                sound.seek(start)
            samples = sound.read(-1 if frames is None else frames, dtype="float32")
            samples = samples if samples.ndim == 1 else samples.mean(axis=1)
            rate = sound.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: not readable audio, or cut off ({_reason(path, error)})") from None
    if len(samples) < promised:
        raise UserError(f"{path}: cut off: {len(samples)} of {promised} samples")
    if len(samples) == 0:
        raise UserError(f"{path}: no samples")
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: samples that are not numbers")
    return samples, rate


def resample(samples: np.ndarray, rate: int, new_rate: int, speed: float = 1.0) -> np.ndarray:
    """Bring (frames,) float32 samples from `rate` to `new_rate` (Hz) and play them `speed` times as fast.

    Faster is the same as a higher original rate: one windowed-sinc filter does both, pitch changes with speed.
    """
    source = round(rate * speed)
    if source == new_rate:
        return samples
    import torch
    import torchaudio

    return torchaudio.functional.resample(torch.from_numpy(samples), source, new_rate).numpy()
