"""Audio as it comes: a file at the pace of its recording, raw samples on a pipe, a microphone.

Each source is an iterator of blocks (N,) of float32 samples in [-1, 1], mono.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from espnet_lmu.data.audio import audio_length, read_audio, resample
from espnet_lmu.errors import UserError

# How audio files begin; an MP3 file without a tag might be samples.
_MAGIC = {b"RIFF": "a WAV", b"RF64": "a WAV", b"FORM": "an AIFF", b"fLaC": "a FLAC", b"OggS": "an Ogg"}
_MAGIC |= {b"NIST": "a SPHERE", b"ID3": "an MP3"}
_BLOCK = 0.02  # seconds
_PIECE = 10  # seconds of a file that are read at once
_MARGIN = 1  # seconds on both sides of a piece, more than a resampling filter reaches


def _file_pieces(path: str, rate: int) -> Iterator[np.ndarray]:
    """An audio file at `rate` Hz, in pieces of some seconds."""
    frames, source = audio_length(path)
    for start in range(0, frames, _PIECE * source):
        first = max(0, start - _MARGIN * source)
        last = min(frames, start + (_PIECE + _MARGIN) * source)
        samples, _ = read_audio(path, first, last - first)
        begin = (start - first) // source * rate
        yield resample(samples, source, rate)[begin : begin + _PIECE * rate]


def file_blocks(path: str, rate: int, fast: bool) -> Iterator[np.ndarray]:
    """An audio file at `rate` Hz, as if it were spoken now, or (`fast`) without waiting."""
    size = round(_BLOCK * rate)
    taken, start = 0, time.monotonic()
    for samples in _file_pieces(path, rate):
        for begin in range(0, len(samples), size):
            block = samples[begin : begin + size]
            taken += len(block)
            if not fast:
                time.sleep(max(0.0, start + taken / rate - time.monotonic()))
            yield block


def pcm_blocks(stream: BinaryIO, rate: int) -> Iterator[np.ndarray]:
    """Raw 16-bit little-endian samples of a pipe, as soon as they are there.

    Raises:
        UserError: the pipe has nothing, or an audio file.
    """
    most = 2 * round(0.2 * rate)
    data = b""
    while len(data) < 4 and (more := stream.read1(most)):
        data += more
    for beginning, kind in _MAGIC.items():
        if data.startswith(beginning):
            raise UserError(f"-: {kind} file; give its name, or pipe raw 16-bit samples")
    if len(data) < 2:
        raise UserError("-: standard input ended without a sample; did the command before this one fail?")
    while data:
        whole = len(data) // 2 * 2
        if whole:
            yield np.frombuffer(data[:whole], dtype="<i2").astype(np.float32) / 32768
        more = stream.read1(most)
        data = data[whole:] + more if more else b""


def import_sounddevice():
    """The module that reads microphones, which is optional.

    Raises:
        UserError: it, or the PortAudio library that it needs, is missing.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise UserError(
            f"microphone: needs the PortAudio library and pip install 'espnet_lmu[microphone]' ({error})"
        ) from None
    return sounddevice


def microphone_blocks(rate: int) -> Iterator[np.ndarray]:
    """The default microphone at `rate` Hz, without an end.

    Raises:
        UserError: there is none, or it cannot record at this rate.
    """
    sounddevice = import_sounddevice()
    blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def take(samples, frames, moment, status) -> None:
        blocks.put(samples[:, 0].copy())

    try:
        with sounddevice.InputStream(rate, round(_BLOCK * rate), channels=1, dtype="float32", callback=take):
            print("speak; Ctrl-C ends the recording", file=sys.stderr)
            while True:
                yield blocks.get()
    except sounddevice.PortAudioError as error:
        raise UserError(f"microphone: {error}") from None
