"""Feature frames of audio that arrives in pieces, equal to those of the whole recording.

Frame k is computed from the samples k * hop to k * hop + window of the recording (or of the recording with what the
analysis puts before and after it): so the samples from the next frame's first one on are kept, and nothing else is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from espnet_lmu.data.format import MEL_BINS, fbank, fbank_inside, frame_geometry
from espnet_lmu.errors import UserError


class _Framing:
    """Cuts a recording that arrives in pieces where the frames of its analysis end.

    Args:
        hop: samples from one frame to the next.
        window: samples of a frame.
        before, after: samples by which the analysis extends the recording, mirrored at its ends.
        repeat: whether the first and last sample are in their own mirror image.
    """

    def __init__(self, hop: int, window: int, before: int, after: int, repeat: bool):
        self.hop, self.window, self.before, self.after = hop, window, before, after
        self.inner = 0 if repeat else 1
        self.ahead = window - before  # samples after its first one without which a frame cannot be computed
        self.reset()

    def reset(self) -> None:
        self.samples = torch.zeros(0)  # from `_skip` before the next frame's first one on
        self.begun = False
        self._skip = 0

    def accept(self, samples: Tensor, is_final: bool) -> Tensor:
        """Samples of the frames that the next samples (N,) of the recording complete; none without a frame.

        A recording that ends before it is long enough for its mirror image gives none; `begun` is False then.
        """
        self.samples = torch.cat([self.samples, samples])
        if not self.begun:
            if len(self.samples) < self.before + self.inner:
                return torch.zeros(0)
            image = self.samples[self.inner : self.before + self.inner].flip(0)
            self.samples = torch.cat([image, self.samples])
            self.begun = True
        if is_final:
            end = len(self.samples) - self.inner
            self.samples = torch.cat([self.samples, self.samples[end - self.after : end].flip(0)])
        frames = max(0, (len(self.samples) - self._skip - self.window) // self.hop + 1)
        if not frames:
            return torch.zeros(0)
        used = self.samples[self._skip :][: (frames - 1) * self.hop + self.window]
        # the end of the recording is mirrored, so that much of it stays
        following = self._skip + frames * self.hop
        begin = max(0, min(following, len(self.samples) - self.after - self.inner))
        self.samples, self._skip = self.samples[begin:].clone(), following - begin
        return used


class KaldiFbank:
    """`espnet_lmu.data.format.fbank`, what recipes store with ``--feats_type fbank``.

    Args:
        rate: sampling rate in Hz.
    """

    def __init__(self, rate: int):
        self.rate = rate
        window, self.hop, before, after = frame_geometry(rate)
        self._framing = _Framing(self.hop, window, before, after, repeat=True)
        self.ahead = self._framing.ahead
        self.reset()

    def reset(self) -> None:
        """Begin a new recording."""
        self._framing.reset()

    def accept(self, samples: Tensor, is_final: bool = False) -> Tensor:
        """Feature frames (T, F) that the next samples (N,) of the recording complete; `is_final` if it ends there."""
        used = self._framing.accept(samples, is_final)
        if is_final and not self._framing.begun:
            return torch.from_numpy(fbank(self._framing.samples.numpy(), self.rate))
        if not len(used):
            return torch.zeros(0, MEL_BINS)
        return torch.from_numpy(fbank_inside(used.numpy(), self.rate))


class DefaultFrontend:
    """ESPnet's `frontend: default`: short-time Fourier transform, mel filters, logarithm.

    A recording that is too short for its reflection has no frames, for ESPnet's frontend cannot take it at all.

    Args:
        frontend: the model's frontend.
    """

    def __init__(self, frontend: nn.Module):
        # A transform with the reflected borders put around the pieces here, in place of around each piece there.
        self.frontend = copy.deepcopy(frontend).cpu().eval()
        stft = self.frontend.stft
        self.hop = stft.hop_length
        border = stft.n_fft // 2 if stft.center else 0
        self._framing = _Framing(self.hop, stft.n_fft, border, border, repeat=False)
        self.ahead = self._framing.ahead
        stft.center = False
        self.reset()

    def reset(self) -> None:
        """Begin a new recording."""
        self._framing.reset()

    def accept(self, samples: Tensor, is_final: bool = False) -> Tensor:
        """Feature frames (T, F) that the next samples (N,) of the recording complete; `is_final` if it ends there."""
        used = self._framing.accept(samples, is_final)
        if not len(used):
            return torch.zeros(0, self.frontend.output_size())
        features, _ = self.frontend(used[None], torch.tensor([len(used)]))
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
