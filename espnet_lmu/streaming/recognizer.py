"""A trained model on audio that arrives in pieces: the text so far, after each piece.

Greedy CTC decoding (Graves et al. 2006, best path) of encoder outputs, which never change once they are there, so a
token that is there stays; only the last word may still get longer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from espnet_lmu.data.audio import NO_SAMPLES, are_samples
from espnet_lmu.data.format import MEL_BINS
from espnet_lmu.decoding.greedy import BLANK, GreedyDecoder
from espnet_lmu.encoder.lmu_encoder import LMUEncoder
from espnet_lmu.encoder.streaming import check_streamable, stream
from espnet_lmu.errors import UserError
from espnet_lmu.streaming.features import feature_stream
from espnet_lmu.tokens import SPACE

_LONGEST = 10.0  # seconds that are processed at once, which bounds the memory


@dataclass(frozen=True)
class Partial:
    """What was recognized so far.

    Attributes:
        text: all of it.
        stable: the part of it that will not change, whatever follows: all but the last word.
        seconds: audio taken in.
    """

    text: str
    stable: str
    seconds: float


class GreedyText:
    """Text of CTC outputs that arrive in pieces.

    Args:
        decoder: the model's tokens and their spelling.
    """

    def __init__(self, decoder: GreedyDecoder):
        self.decoder = decoder
        self.tokens = decoder.converter.token_list
        self.has_spaces = SPACE in self.tokens
        self.has_pieces = any(token.startswith("▁") for token in self.tokens)
        # Characters without a token for a space (of Chinese, say) have none between them, words have.
        self.between = " " if self.has_spaces or self.has_pieces else decoder.tokenizer.tokens2text(["a", "b"])[1:-1]
        self.stable = ""
        self._word: list[int] = []  # the tokens after the stable text
        self._last = BLANK

    def accept(self, ids: list[int]) -> None:
        """Take in the best token of each of the next frames."""
        for token in ids:
            if token not in (self._last, BLANK, self.decoder.sos_eos):
                self._append(token)
            self._last = token

    def _append(self, token: int) -> None:
        if self.tokens[token] == SPACE or (self.has_pieces and self.tokens[token].startswith("▁")):
            self.finish()
        self._word.append(token)
        if not self.has_spaces and not self.has_pieces:
            self.finish()

    def finish(self) -> None:
        """No token will join the last word."""
        self.stable = self.text()
        self._word = []

    def text(self) -> str:
        """All text so far."""
        return self.between.join(filter(None, (self.stable, self.decoder.text(self._word))))


class StreamingRecognizer:
    """Recognizes one recording while it arrives; its text is that of greedy decoding of the whole.

    Args:
        config_file: ``config.yaml`` of the experiment.
        model_file: weights, e.g. ``valid.cer_ctc.ave.pth``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        chunk_seconds: audio after which the text goes on, a multiple of the encoder's frame (the nearest one is
            taken); None for the shortest that the model was trained with. A model without attention gives text with
            each frame.
        fs: sampling rate in Hz of a model of stored features, whose configuration does not say it.

    Attributes:
        fs: sampling rate in Hz of the samples to `accept`.
        chunk: encoder frames that are recognized at once.
        chunk_seconds: the same in seconds.
        frames: encoder frames recognized so far.
        latency: seconds from a sound until the text can have it (algorithmic latency): at most so long must the model
            wait for audio. What the computation takes comes on top.

    Raises:
        UserError: the files cannot be read, or the model cannot stream.

    Example:
        >>> recognizer = StreamingRecognizer("exp/asr_train/config.yaml", "exp/asr_train/valid.cer_ctc.ave.pth")
        >>> for piece in pieces:
        ...     print(recognizer.accept(piece).text)
        >>> print(recognizer.finish().text)
    """

    def __init__(
        self,
        config_file: str | Path,
        model_file: str | Path,
        device: str = "cpu",
        chunk_seconds: float | None = None,
        fs: int | None = None,
    ):
        self._decoder = GreedyDecoder(config_file, model_file, device)
        model = self._decoder.model
        if model.frontend is None and self._decoder.input_size != MEL_BINS:
            raise UserError(
                f"this model takes {self._decoder.input_size} features a frame, not {MEL_BINS} as fbank has"
            )
        if not isinstance(model.encoder, LMUEncoder):
            raise UserError(f"this model cannot stream: its encoder is {type(model.encoder).__name__}, not lmu")
        try:
            check_streamable(model.encoder)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.fs = self._decoder.fs if fs is None else fs
        self._features = feature_stream(model, self.fs)
        self._set_chunk(chunk_seconds)
        self.reset()

    def another(self, chunk_seconds: float | None = None) -> StreamingRecognizer:
        """A recognizer of another recording with the same loaded model, and a chunk of its own if one is given."""
        other = copy.copy(self)
        other._features = feature_stream(self._decoder.model, self.fs)
        if chunk_seconds is not None:
            other._set_chunk(chunk_seconds)
        other.reset()
        return other

    def _set_chunk(self, chunk_seconds: float | None) -> None:
        encoder = self._decoder.model.encoder
        embed, hop = encoder.embed, self._features.hop
        frame = embed.factor * hop / self.fs  # seconds
        if encoder.layers[0].attention is None:
            self.chunk = 1
        elif chunk_seconds is None:
            self.chunk = encoder.streaming_chunk
        elif chunk_seconds > 0:
            self.chunk = max(1, round(min(chunk_seconds, 1e6) / frame))
        else:
            raise UserError(f"a chunk of {chunk_seconds:g} s: give more than 0")
        self._chunk_samples = self.chunk * embed.factor * hop
        self.chunk_seconds = self._chunk_samples / self.fs
        last_frame = (self.chunk - 1) * embed.factor + embed.look_ahead
        self._first_samples = last_frame * hop + self._features.ahead
        self.latency = self._first_samples / self.fs

    def reset(self) -> None:
        """Begin a new recording."""
        self._features.reset()
        self._state = None
        self._waiting: list[np.ndarray] = []  # samples that complete no chunk yet
        self._samples = 0
        self._enough = self._first_samples
        self._text = GreedyText(self._decoder)
        self.frames = 0
        self._finished = False

    def accept(self, samples: np.ndarray) -> Partial:
        """Take in the next samples of the recording.

        Args:
            samples: (N,) float32 in [-1, 1], any number of them, at `fs` Hz.

        Raises:
            UserError: the samples have another shape, or are not numbers; none of them is taken in.
            RuntimeError: the recording was finished.
        """
        if self._finished:
            raise RuntimeError("this recording was finished: reset() begins a new one")
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise UserError(f"samples of shape {samples.shape} and type {samples.dtype}: give (N,) floating-point ones")
        with np.errstate(over="ignore"):
            samples = samples.astype(np.float32)  # a copy, since the caller may use the buffer again
        if not are_samples(samples):
            raise UserError(NO_SAMPLES)
        most = max(round(_LONGEST * self.fs), 1)
        for begin in range(0, len(samples), most):
            self._take(samples[begin : begin + most])
        return self._partial()

    def _take(self, samples: np.ndarray) -> None:
        self._waiting.append(samples)
        self._samples += len(samples)
        if self._samples >= self._enough:
            self._process(is_final=False)
            self._enough += ((self._samples - self._enough) // self._chunk_samples + 1) * self._chunk_samples

    @torch.inference_mode()
    def _process(self, is_final: bool) -> None:
        model, device = self._decoder.model, self._decoder.device
        samples = torch.from_numpy(np.concatenate([*self._waiting, np.zeros(0, dtype=np.float32)]))
        self._waiting = []
        features = self._features.accept(samples, is_final)[None].to(device)
        if model.normalize is not None and features.size(1):
            features, _ = model.normalize(features, torch.tensor([features.size(1)], device=device))
        encoded, self._state = stream(model.encoder, features, self._state, is_final, model.ctc, self.chunk)
        self.frames += encoded.size(1)
        self._text.accept(model.ctc.argmax(encoded)[0].tolist())

    def _partial(self) -> Partial:
        return Partial(self._text.text(), self._text.stable, self._samples / self.fs)

    def finish(self) -> Partial:
        """The whole text, with that of the samples that were waiting for more."""
        if not self._finished:
            self._process(is_final=True)
            self._text.finish()
            self._finished = True
        return self._partial()
