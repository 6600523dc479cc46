"""A trained model as a recognizer of recordings of any length, rate and number of channels.

Recordings are cut into windows, so that memory does not grow with their length; windows of similar length form a
batch, and several processes work on the batches.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.data.audio import NO_SAMPLES, are_samples, audio_length, check_rate, read_audio, resample
from espnet_lmu.data.format import FRAME_SHIFT_MS, MEL_BINS, fbank
from espnet_lmu.decoding.greedy import GreedyDecoder
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.model_files import open_model
from espnet_lmu.recognition.transcript import Token, Transcript, append_window, greedy_tokens, group_words

# A path, or samples (frames,) or (frames, channels) in [-1, 1] with their sampling rate in Hz.
Audio = str | os.PathLike | tuple[np.ndarray, int]

WINDOW = 30.0  # seconds
OVERLAP = 5.0  # seconds that a window has in common with the next one
_BATCH = 120.0  # seconds of audio, padding included, in a batch
_MOST_CHANNELS = 256
_GROUP = 512  # windows among which those of similar length are put together


@dataclass(frozen=True)
class _Window:
    """A piece of a recording, from `start` to `stop` (seconds)."""

    recording: int
    audio: Audio
    start: float
    stop: float


def cut_windows(duration: float, frame_shift: float) -> list[tuple[float, float]]:
    """(start, stop) in seconds of the windows of a recording; they start at whole encoder frames."""
    step = round((WINDOW - OVERLAP) / frame_shift) * frame_shift
    windows = [(0.0, min(WINDOW, duration))]
    while windows[-1][1] < duration:
        start = step * len(windows)
        windows.append((start, min(start + WINDOW, duration)))
    return windows


def _read(audio: Audio, start: float, stop: float) -> tuple[np.ndarray, int]:
    """Mono samples (frames,) of a part of a recording, and their rate."""
    if not isinstance(audio, tuple):
        _, rate = audio_length(audio)
        return read_audio(audio, round(start * rate), round(stop * rate) - round(start * rate))
    samples, rate = audio
    part = np.asarray(samples[round(start * rate) : round(stop * rate)], dtype=np.float32)
    part = part.mean(axis=1) if part.ndim == 2 else part
    if not are_samples(part):
        raise UserError(f"audio has {NO_SAMPLES}")
    return part, rate


def _duration(audio: Audio) -> float:
    """Seconds of a recording."""
    if isinstance(audio, str | os.PathLike):
        frames, rate = audio_length(audio)
        return frames / rate
    if not isinstance(audio, tuple) or len(audio) != 2:
        raise UserError("audio: give the path of a file, or (samples, rate), or a list of these")
    samples, rate = audio
    if not isinstance(samples, np.ndarray) or samples.ndim not in (1, 2) or samples.dtype.kind != "f":
        raise UserError("audio: give floating-point samples in [-1, 1] of shape (frames,) or (frames, channels)")
    if samples.ndim == 2 and samples.shape[1] > _MOST_CHANNELS:
        raise UserError(f"audio of shape {samples.shape}: give (frames, channels), frames first")
    check_rate("audio", rate)
    if len(samples) == 0:
        raise UserError("audio has no samples")
    return len(samples) / rate


class Recognizer:
    """What `espnet_lmu.load_model` returns: a trained model that turns recordings into text.

    Args:
        decoder: the model with its tokenizer.
        rate: sampling rate (Hz) that the model takes.
        stream: makes the recognizer of `stream`.
    """

    def __init__(self, decoder: GreedyDecoder, rate: int, stream=None):
        self.decoder = decoder
        self.rate = rate
        self._stream = stream
        self.frame_shift = self._find_frame_shift()

    def _input(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """What the model takes: samples at its rate, or the features that stage 3 stores for it."""
        samples = resample(samples, rate, self.rate)
        if self.decoder.input_size is None:
            return samples
        return fbank(samples, self.rate)

    def _find_frame_shift(self) -> float:
        """Seconds from one encoder frame to the next: the features' shift times the subsampling, a whole number."""
        silence = np.zeros(8 * self.rate, dtype=np.float32)
        frames = len(self.decoder.log_posteriors([self._input(silence, self.rate)])[0])
        if self.decoder.input_size is None:
            feature_shift = self.decoder.hop_length / self.rate
        else:
            feature_shift = FRAME_SHIFT_MS / 1000
        return round(8 / feature_shift / frames) * feature_shift

    def recognize(self, windows: Sequence[_Window]) -> list[list[Token] | str]:
        """Tokens of each window of a batch, with times from the recording's start; a message for a broken one."""
        results: list[list[Token] | str] = [[] for _ in windows]
        inputs, kept = [], []
        for i, window in enumerate(windows):
            try:
                inputs.append(self._input(*_read(window.audio, window.start, window.stop)))
                kept.append(i)
            except UserError as error:
                results[i] = str(error)
        for i, log_probs in zip(kept, self.decoder.log_posteriors(inputs), strict=True):
            if log_probs is not None:
                results[i] = greedy_tokens(log_probs, self.frame_shift, self.decoder.sos_eos, windows[i].start)
        return results

    def _transcript(self, tokens: list[Token], duration: float) -> Transcript:
        # The last frame reaches past the audio.
        inside = [token._replace(start=min(token.start, duration), end=min(token.end, duration)) for token in tokens]
        words = group_words(inside, self.decoder.converter.token_list, self.decoder.text)
        return Transcript(self.decoder.text([token.id for token in tokens]), words, duration)

    def transcribe_all(self, recordings: Sequence[Audio], nj: int = 1) -> Iterator[Transcript | UserError]:
        """Transcribe recordings, in their order, in batches; a broken one yields its error.

        Args:
            recordings: see `Audio`.
            nj: processes to fork. OpenMP's threads do not survive a fork: with more than one, call
                ``torch.set_num_threads(1)`` before the model is loaded.
        """
        windows: list[_Window] = []
        durations: list[float] = []
        waiting: list[list[list[Token] | str | None]] = []  # for each recording the results of its windows
        places: list[int] = []  # of each window, which one it is in its recording
        for recording, audio in enumerate(recordings):
            try:
                durations.append(_duration(audio))
            except UserError as error:
                durations.append(0.0)
                waiting.append([str(error)])
                continue
            cuts = cut_windows(durations[-1], self.frame_shift)
            windows += [_Window(recording, audio, start, stop) for start, stop in cuts]
            places += range(len(cuts))
            waiting.append([None] * len(cuts))

        recording = 0
        for batch, results in self._run(_batches(windows), windows, nj):
            for index, result in zip(batch, results, strict=True):
                waiting[windows[index].recording][places[index]] = result
            while recording < len(waiting) and None not in waiting[recording]:
                yield self._finish(waiting[recording], durations[recording])
                waiting[recording] = []
                recording += 1
        for remaining in range(recording, len(waiting)):  # all broken
            yield self._finish(waiting[remaining], durations[remaining])

    def _finish(self, results: list[list[Token] | str], duration: float) -> Transcript | UserError:
        if broken := [result for result in results if isinstance(result, str)]:
            return UserError(broken[0])
        tokens = list(results[0])
        cuts = cut_windows(duration, self.frame_shift)
        for window, (_, end), (begin, _) in zip(results[1:], cuts, cuts[1:], strict=False):
            append_window(tokens, window, begin, end)
        return self._transcript(tokens, duration)

    def _run(
        self, batches: list[list[int]], windows: list[_Window], nj: int
    ) -> Iterator[tuple[list[int], list[list[Token] | str]]]:
        """Each batch (indices of windows) with its results, in order."""
        nj = min(nj, len(batches))
        if nj <= 1:
            for batch in batches:
                yield batch, self.recognize([windows[i] for i in batch])
            return
        fork = multiprocessing.get_context("fork")  # the model is loaded once, and inherited
        with ProcessPoolExecutor(nj, fork, initializer=_start_worker, initargs=(self, windows)) as pool:
            # A future keeps its result, so each goes when it has been handed on.
            futures: deque[Future] = deque(pool.submit(_recognize_forked, batch) for batch in batches)
            try:
                for batch in batches:
                    yield batch, futures.popleft().result()
            except BrokenProcessPool:
                raise UserError("a process was killed (out of memory?); run with a smaller --nj") from None
            finally:
                pool.shutdown(cancel_futures=True)

    def transcribe(self, audio: Audio | list[Audio]) -> Transcript | list[Transcript]:
        """Text of a recording, with the times and confidences of its words; a list of them for a list.

        Args:
            audio: the path of a file that soundfile reads, or ``(samples, rate)``: floating-point samples (frames,) or
                (frames, channels) in [-1, 1] and their sampling rate in Hz; or a list of these.

        Raises:
            UserError: a recording cannot be read.
        """
        several = isinstance(audio, list)
        transcripts = []
        for result in self.transcribe_all(audio if several else [audio]):
            if isinstance(result, UserError):
                raise result
            transcripts.append(result)
        return transcripts if several else transcripts[0]

    def stream(self):
        """A recognizer of audio that comes in pieces: `espnet_lmu.streaming.StreamingRecognizer`.

        Raises:
            UserError: the model cannot stream.
        """
        return self._stream()


_inherited: tuple[Recognizer, list[_Window]]  # of a forked process


def _start_worker(recognizer: Recognizer, windows: list[_Window]) -> None:
    """Let this process end with the one that forked it, and not before: Ctrl-C is the parent's to answer."""
    global _inherited
    _inherited = (recognizer, windows)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Not as in espnet_lmu.parallel: Linux's signal comes when the thread that forked ends, and here that is any thread.
    sentinel = multiprocessing.parent_process().sentinel

    def wait() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _recognize_forked(batch: list[int]) -> list[list[Token] | str]:
    recognizer, windows = _inherited
    return recognizer.recognize([windows[i] for i in batch])


def _batches(windows: list[_Window]) -> list[list[int]]:
    """Indices of windows that are recognized together: neighbours in the input, of similar length."""
    batches = []
    for first in range(0, len(windows), _GROUP):
        group = sorted(
            range(first, min(first + _GROUP, len(windows))), key=lambda i: windows[i].start - windows[i].stop
        )
        batch: list[int] = []
        for i in group:
            if batch and (len(batch) + 1) * (windows[batch[0]].stop - windows[batch[0]].start) > _BATCH:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    return batches


def load_model(model: str | Path, device: str = "cpu") -> Recognizer:
    """Load a trained model.

    Nothing in its files is run: YAML is read by safe load, weights by ``weights_only=True``.

    Args:
        model: an experiment's folder, a file that stage 14 packed, or the id of a model on the Hugging Face hub.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: there is no such model, or its files are damaged or not what they should be; or it was trained on
            other features than this version computes.
    """
    files = open_model(model)
    decoder = GreedyDecoder(files.config_file, files.model_file, device)
    if decoder.input_size not in (None, MEL_BINS):
        raise UserError(f"{model}: takes {decoder.input_size} features a frame, which are not those of stage 3")

    def stream():
        from espnet_lmu.streaming import StreamingRecognizer

        return StreamingRecognizer(files.config_file, files.model_file, device, fs=files.rate)

    return Recognizer(decoder, files.rate or decoder.fs, stream)
