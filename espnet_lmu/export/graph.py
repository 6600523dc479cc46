"""The whole of a trained model as a graph: from features, or from a waveform, to log posteriors.

B: batch, T: feature frames, F: features per frame, T': encoder frames, V: tokens, S: samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.errors import UserError
from espnet_lmu.export.layers import exportable
from espnet_lmu.lmu.naive import valid_frames

# Root mean square of speech, of full scale: what a waveform that was brought to unit variance is multiplied by, so that
# the features' floor, which is an absolute level, lies where it lies in training.
SPEECH_LEVEL = 0.03


class Normalization(nn.Module):
    """ESPnet's `global_mvn` or `utterance_mvn`, or none, over valid frames.

    Args:
        layer: ESPnet's module, or None.

    Raises:
        UserError: another normalization.
    """

    def __init__(self, layer: nn.Module | None) -> None:
        super().__init__()
        from espnet2.layers.global_mvn import GlobalMVN
        from espnet2.layers.utterance_mvn import UtteranceMVN

        if not isinstance(layer, GlobalMVN | UtteranceMVN | None):
            raise UserError(f"normalize: {type(layer).__name__} cannot be exported, global_mvn and utterance_mvn can")
        self.by_utterance = isinstance(layer, UtteranceMVN)
        self.means = layer is not None and layer.norm_means
        self.variances = layer is not None and layer.norm_vars
        self.eps = 0.0 if layer is None else layer.eps
        if isinstance(layer, GlobalMVN):
            self.register_buffer("mean", layer.mean.float())
            self.register_buffer("std", layer.std.float())

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F), (B,) -> (B, T, F), zero on padding."""
        padding = ~valid_frames(lengths, x.size(1))[:, :, None]
        if self.by_utterance:
            count = lengths.to(x.dtype)[:, None, None]
            mean = x.masked_fill(padding, 0.0).sum(1, keepdim=True) / count
            centred = (x - mean).masked_fill(padding, 0.0)
            if self.variances:
                std = (centred.square().sum(1, keepdim=True) / count).sqrt().clamp(min=self.eps)
        elif self.means or self.variances:
            mean, std = self.mean, self.std
            centred = x - mean
        if self.means:
            x = centred
        if self.variances:
            x = x / std
        return x.masked_fill(padding, 0.0)


class OfflineGraph(nn.Module):
    """Features to log posteriors of a whole batch; the form of a model that is traced.

    Args:
        model: a trained ESPnetASRModel with `encoder: lmu`.

    Raises:
        UserError: the model has a part that cannot be exported.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from espnet_lmu.encoder.lmu_encoder import LMUEncoder

        encoder = model.encoder
        if not isinstance(encoder, LMUEncoder):
            raise UserError(f"encoder: {type(encoder).__name__} cannot be exported, lmu can")
        for name in ("preencoder", "postencoder"):
            if getattr(model, name, None) is not None:
                raise UserError(f"{name}: {type(getattr(model, name)).__name__} cannot be exported")
        if model.ctc is None:
            raise UserError("the model has no CTC: its ctc_weight is 0; train with ctc_weight: 1.0")
        self.normalize = Normalization(model.normalize)
        self.encoder = exportable(encoder)
        self.ctc = model.ctc.ctc_lo

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> log posteriors (B, T', V), meaningless on padding; valid frames (B,)."""
        encoder = self.encoder
        x, lengths = encoder.embed(self.normalize(x, lengths), lengths)
        valid = valid_frames(lengths, x.size(1))
        for index, layer in enumerate(encoder.layers, start=1):
            x, _ = layer(x, lengths, valid, chunk=encoder.attention_chunk)
            if encoder.interctc_use_conditioning and index in encoder.interctc_layer_idx:
                x = x + encoder.conditioning_layer(self.ctc(encoder.out(x)).softmax(-1))
        return self.ctc(encoder.out(x)).log_softmax(-1), lengths


def _dft(window: Tensor, size: int) -> Tensor:
    """The window's frame to real and imaginary parts of its spectrum of `size` points, (size + 2, frame), float64."""
    frequency = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
    angle = 2 * math.pi / size * frequency * torch.arange(len(window), dtype=torch.float64)
    return torch.cat([angle.cos(), -angle.sin()]) * window.double()


class LogMel(nn.Module):
    """Log-mel features of a waveform by one convolution, which holds all that is linear before the power spectrum.

    Args:
        kernels: (2 K, 1, samples of a frame), the real, then the imaginary parts of K frequencies.
        shift: samples from one frame to the next.
        padding: samples that the waveform is extended by at both ends, reflected.
        mel: (K, F).
        floor: the least energy of a band.
    """

    def __init__(self, kernels: Tensor, shift: int, padding: int, mel: Tensor, floor: float) -> None:
        super().__init__()
        self.register_buffer("kernels", kernels.float())
        self.register_buffer("mel", mel.float())
        self.shift = shift
        self.padding = padding
        self.floor = floor

    def forward(self, samples: Tensor) -> Tensor:
        """(B, S) -> (B, T, F)."""
        samples = samples[:, None]
        if self.padding:
            samples = F.pad(samples, (self.padding, self.padding), mode="reflect")
        real, imaginary = F.conv1d(samples, self.kernels, stride=self.shift).chunk(2, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2)
        return (power @ self.mel).clamp(min=self.floor).log()


def espnet_log_mel(frontend: nn.Module) -> LogMel:
    """The features of ESPnet's default frontend.

    Raises:
        UserError: a frontend or a setting of it that cannot be exported.
    """
    from espnet2.asr.frontend.default import DefaultFrontend

    if not isinstance(frontend, DefaultFrontend):
        raise UserError(f"frontend: {type(frontend).__name__} cannot be exported, the default one can")
    enhancement = frontend.frontend
    if enhancement is not None and (enhancement.use_wpe or enhancement.use_beamformer):
        raise UserError("frontend_conf: a frontend with WPE or a beamformer cannot be exported")
    stft, log_mel = frontend.stft, frontend.logmel
    if stft is None or stft.normalized or not stft.onesided or log_mel.log_base is not None:
        raise UserError("frontend_conf: give no apply_stft, normalized, onesided or log_base to export this model")
    size = stft.n_fft
    window = torch.ones(stft.win_length, dtype=torch.float64)
    if stft.window is not None:
        window = getattr(torch, f"{stft.window}_window")(stft.win_length, dtype=torch.float64)
    before = (size - stft.win_length) // 2
    window = F.pad(window, (before, size - stft.win_length - before))
    return LogMel(_dft(window, size)[:, None], stft.hop_length, size // 2 if stft.center else 0, log_mel.melmat, 1e-10)


class WaveGraph(nn.Module):
    """A waveform of zero mean and unit variance to log posteriors: the interface of sherpa-onnx's omnilingual models.

    Args:
        log_mel: the features.
        graph: the model that takes them; it normalizes each utterance, so that a factor of the waveform, which adds a
            constant to log-mel features, changes nothing.
    """

    def __init__(self, log_mel: LogMel, graph: OfflineGraph) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.graph = graph

    def forward(self, samples: Tensor) -> Tensor:
        """(1, S) -> (1, T', V)."""
        x = self.log_mel(samples * SPEECH_LEVEL)
        lengths = torch.full_like(x[:, 0, 0], x.size(1)).to(torch.int64)
        return self.graph(x, lengths)[0]
