"""Feature frames of audio that arrives in pieces, equal to those of the whole recording.

Frame k is computed from the samples k * hop to k * hop + window of the recording (or of the recording with what the
analysis puts before and after it): so the samples from the next frame's first one on are kept, and nothing else is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from espnet_lmu.data.format import FRAME_SHIFT_MS, MEL_BINS, fbank, window_length
from espnet_lmu.errors import UserError


class KaldiFbank:
    """`espnet_lmu.data.format.fbank`, what recipes store with ``--feats_type fbank``.

    Args:
        rate: sampling rate in Hz.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self.hop = int(rate * FRAME_SHIFT_MS * 0.001)
        self.window = window_length(rate)
        self.ahead = self.window  # samples after its first one without which a frame cannot be computed
        self.reset()

    def reset(self) -> None:
        """Begin a new recording."""
        self._samples = torch.zeros(0)

    def accept(self, samples: Tensor, is_final: bool = False) -> Tensor:
        """Feature frames (T, F) that the next samples (N,) of the recording complete; `is_final` if it ends there."""
        self._samples = torch.cat([self._samples, samples])
        frames = max(0, (len(self._samples) - self.window) // self.hop + 1)
        if not frames:
            return torch.zeros(0, MEL_BINS)
        used = self._samples[: (frames - 1) * self.hop + self.window]
        features = torch.from_numpy(fbank(used.numpy(), self.rate))
        self._samples = self._samples[frames * self.hop :].clone()
        return features


class DefaultFrontend:
    """ESPnet's `frontend: default`: short-time Fourier transform, mel filters, logarithm.

    Args:
        frontend: the model's frontend.
    """

    def __init__(self, frontend: nn.Module):
        # A transform with the reflected borders put around the pieces here, in place of around each piece there.
        self.frontend = copy.deepcopy(frontend).cpu().eval()
        stft = self.frontend.stft
        self.hop, self.window = stft.hop_length, stft.n_fft
        self.border = stft.n_fft // 2 if stft.center else 0
        self.ahead = self.window - self.border
        stft.center = False
        self.reset()

    def reset(self) -> None:
        """Begin a new recording."""
        self._samples = torch.zeros(0)  # from `_skip` before the next frame's first one on
        self._skip = 0
        self._begun = False

    def accept(self, samples: Tensor, is_final: bool = False) -> Tensor:
        """Feature frames (T, F) that the next samples (N,) of the recording complete; `is_final` if it ends there.

        A recording that is too short for its reflection has no frames, for ESPnet's frontend cannot take it at all.
        """
        self._samples = torch.cat([self._samples, samples])
        nothing = torch.zeros(0, self.frontend.output_size())
        if len(self._samples) <= self.border and not self._begun:
            return nothing
        if self.border and not self._begun:
            self._samples = torch.cat([self._samples[1 : self.border + 1].flip(0), self._samples])
        self._begun = True
        if self.border and is_final:
            self._samples = torch.cat([self._samples, self._samples[-self.border - 1 : -1].flip(0)])
        available = len(self._samples) - self._skip
        frames = max(0, (available - self.window) // self.hop + 1)
        if not frames:
            return nothing
        used = self._samples[self._skip :][: (frames - 1) * self.hop + self.window][None]
        features, _ = self.frontend(used, torch.tensor([used.size(1)]))
        # the end of the recording is reflected, so that much of it stays
        following = self._skip + frames * self.hop
        begin = min(following, len(self._samples) - self.border - 1)
        self._samples, self._skip = self._samples[begin:].clone(), following - begin
        return features[0]


def feature_stream(model: nn.Module, rate: int) -> KaldiFbank | DefaultFrontend:
    """The features that an ESPnetASRModel was trained on.

    Raises:
        UserError: one of the parts before the encoder needs the whole recording.
    """
    from espnet2.asr.frontend.default import DefaultFrontend as ESPnetFrontend
    from espnet2.layers.global_mvn import GlobalMVN

    if model.normalize is not None and not isinstance(model.normalize, GlobalMVN):
        raise UserError(
            f"this model cannot stream: {type(model.normalize).__name__} reads the whole recording; train it with "
            "normalize: global_mvn"
        )
    for name in ("preencoder", "postencoder"):
        if getattr(model, name) is not None:
            raise UserError(f"this model cannot stream: it has a {name}")
    if model.frontend is None:
        return KaldiFbank(rate)
    if not isinstance(model.frontend, ESPnetFrontend) or model.frontend.stft is None:
        raise UserError(f"this model cannot stream: its frontend is {type(model.frontend).__name__}, not default")
    enhancement = model.frontend.frontend
    if enhancement is not None and (enhancement.use_wpe or enhancement.use_beamformer):
        raise UserError("this model cannot stream: its frontend removes reverberation, for which it needs all of it")
    return DefaultFrontend(model.frontend)
