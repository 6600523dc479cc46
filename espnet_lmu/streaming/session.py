"""One recording from its source to the screen: text while it comes, then what it took."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from espnet_lmu.streaming.recognizer import Partial, StreamingRecognizer

_CLEAR_LINE, _DIM, _NORMAL = "\r\x1b[K", "\x1b[2m", "\x1b[0m"


@dataclass
class Timing:
    """What recognition took: the audio's seconds, all computation, and that of each chunk (seconds)."""

    audio: float = 0.0
    computation: float = 0.0
    chunks: list[float] = field(default_factory=list)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computation for one second of audio."""
        return self.computation / max(self.audio, 1e-9)


def recognize(
    recognizer: StreamingRecognizer,
    blocks: Iterable[np.ndarray],
    timing: Timing,
    show: Callable[[Partial], None] = lambda partial: None,
    interruptible: bool = False,
) -> Partial:
    """Recognize a recording.

    Args:
        recognizer: at the beginning of a recording.
        blocks: the recording.
        timing: to which is added what this takes.
        show: called with each new state of the text.
        interruptible: whether Ctrl-C ends the recording, and no more than that.

    Returns:
        the whole text.
    """

    def timed(call: Callable[..., Partial], *arguments) -> Partial:
        frames, start = recognizer.frames, time.perf_counter()
        partial = call(*arguments)
        elapsed = time.perf_counter() - start
        timing.computation += elapsed
        if recognizer.frames > frames:
            timing.chunks.append(elapsed)
            show(partial)
        return partial

    try:
        for block in blocks:
            timed(recognizer.accept, block)
    except KeyboardInterrupt:
        if not interruptible:
            raise
    partial = timed(recognizer.finish)
    show(partial)
    timing.audio += partial.seconds
    return partial


def summary(recognizer: StreamingRecognizer, timing: Timing) -> str:
    """Latency and speed in two lines."""
    milliseconds = 1000 * np.array(timing.chunks or [0.0])
    return (
        f"latency: {recognizer.latency:.3f} s at most (chunks of {recognizer.chunk_seconds:g} s); and computation, "
        f"{milliseconds.mean():.1f} ms a chunk, {milliseconds.max():.1f} ms at most ({len(timing.chunks)} chunks)\n"
        f"real-time factor: {timing.real_time_factor:.4f} ({timing.audio:.1f} s of audio)"
    )


# What a line may be broken before: words, with the space in front, and each character of scripts that have no spaces.
_BREAKABLE = re.compile(r"\s*(?:[\u2e80-\u9fff\uf900-\uffef]|[^\s\u2e80-\u9fff\uf900-\uffef]+)")


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


class PlainText:
    """Stable text, a line as it comes: seconds of audio, then words."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self._shown = 0  # characters

    def __call__(self, partial: Partial) -> None:
        if words := partial.stable[self._shown :].strip():
            print(f"{partial.seconds:.2f} {words}", file=self.stream, flush=True)
            self._shown = len(partial.stable)

    def close(self) -> None:
        """The recording is over."""


class TerminalText:
    """Text that flows over a terminal, with the words that may still change dimmed, and rewritten in place."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self._shown = 0  # characters of the stable text
        self._line = ""  # the part of them in the terminal's last line

    def __call__(self, partial: Partial) -> None:
        columns = (os.get_terminal_size(self.stream.fileno()).columns or 80) - 1  # some terminals do not know
        output = _CLEAR_LINE
        for word in _BREAKABLE.findall(partial.stable[self._shown :]):
            line = f"{self._line}{word}"
            if self._line and _width(line) > columns:
                output += f"{self._line}\n"
                line = word
            self._line = line.lstrip()
        self._shown = len(partial.stable)
        tail = partial.text[len(partial.stable) :]
        # A tail that ran into the next line could not be rewritten.
        while tail and _width(self._line + tail) > columns:
            tail = tail[:-1]
        self.stream.write(f"{output}{self._line}{_DIM}{tail}{_NORMAL}")
        self.stream.flush()

    def close(self) -> None:
        """The recording is over: what follows begins a line."""
        if self._line:
            self.stream.write("\n")
            self.stream.flush()
