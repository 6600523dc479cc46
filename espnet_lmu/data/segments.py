"""Utterances inside long recordings: Kaldi's ``segments`` file (UTTERANCE RECORDING START END).

Times are in seconds; an end of -1 is that of the recording, as in Kaldi's extract-segments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from espnet_lmu.data.audio import audio_length, read_audio
from espnet_lmu.errors import UserError


class Excerpt(NamedTuple):
    """The audio of an utterance: a file, or a part of it."""

    path: str
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None for the end of the file


def parse_segment(value: str) -> tuple[str, float, float | None]:
    """Recording, start and end (seconds; None for the recording's) of the value of a line of ``segments``.

    Raises:
        UserError: not three fields, times that are no numbers, a negative start, an end that is not after the start.
    """
    fields = value.split()
    try:
        recording, start, end = fields[0], float(fields[1]), float(fields[2])
        if len(fields) != 3:
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(f'"{value}": give RECORDING START END, with times in seconds') from None
    to_the_end = end == -1
    if not 0 <= start < (float("inf") if to_the_end else end) or end == float("inf"):
        raise UserError(
            f"{start:g} to {end:g} s of {recording}: the end must be after the start (or -1, the recording's), "
            "the start 0 or more"
        )
    return recording, start, None if to_the_end else end


def sample_range(excerpt: Excerpt, frames: int, rate: int) -> tuple[int, int]:
    """First sample of an excerpt and the one behind its last, both rounded to the nearest; the file has `frames`."""
    return round(excerpt.start * rate), frames if excerpt.end is None else round(excerpt.end * rate)


def read_excerpt(excerpt: Excerpt) -> tuple[np.ndarray, int]:
    """Read the audio of an utterance as mono: samples (frames,) float32, sampling rate in Hz.

    Raises:
        UserError: as `read_audio`, or the recording ends before the segment does.
    """
    if excerpt.end is None and excerpt.start == 0:
        return read_audio(excerpt.path)
    frames, rate = audio_length(excerpt.path)
    first, last = sample_range(excerpt, frames, rate)
    times = f"from {excerpt.start:g} to {'the end' if excerpt.end is None else f'{excerpt.end:g} s'}"
    if max(first, last) > frames:
        raise UserError(f"{excerpt.path}: lasts {frames / rate:.3f} s, but a segment is {times}")
    if last == first:
        raise UserError(f"{excerpt.path}: no samples {times}")
    return read_audio(excerpt.path, first, last - first)
