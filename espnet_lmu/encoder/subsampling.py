"""Input layers: from feature frames (B, T, F) to encoder frames (B, T', D), T' = about T / factor.

The output of a valid frame never depends on padding: ESPnet's convolutions (no zero padding of their own) keep
only the frames whose whole receptive field is valid, which is what each sequence gives when it is alone; the
depthwise one clears the padding before every convolution. All clear it before the first: what it held must not become
NaN in the frames that attention masks, because zero times NaN is NaN.

Output t depends on the frames from `factor` t - `history` to `factor` t + `look_ahead` alone, which every input layer
has as attributes, so every one can be given a recording in pieces: see `stream_input`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.lmu.naive import valid_frames

try:
    from espnet2.legacy.nets.pytorch_backend.transformer import subsampling as espnets
except ModuleNotFoundError:  # ESPnet 202511
    from espnet.nets.pytorch_backend.transformer import subsampling as espnets

TooShortUttError = espnets.TooShortUttError

# name -> (ESPnet's module, kernel and stride over time of each of its convolutions)
_ESPNET = {
    "conv2d": (espnets.Conv2dSubsampling, ((3, 2), (3, 2))),
    "conv2d1": (espnets.Conv2dSubsampling1, ((3, 1), (3, 1))),
    "conv2d2": (espnets.Conv2dSubsampling2, ((3, 2), (3, 1))),
    "conv2d6": (espnets.Conv2dSubsampling6, ((3, 2), (5, 3))),
    "conv2d8": (espnets.Conv2dSubsampling8, ((3, 2), (3, 2), (3, 2))),
}
INPUT_LAYERS = ("linear", *_ESPNET, "dw_striding", "dw_striding8")


def _check_length(lengths: Tensor, shortest: int) -> None:
    """Raise ESPnet's TooShortUttError, which its decoding commands catch, if an utterance gives no frame."""
    length = int(lengths.min())
    if length < shortest:
        raise TooShortUttError(
            f"has {length} frames and is too short for subsampling (it needs at least {shortest} frames), "
            "return empty results",
            length,
            shortest,
        )


def _without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero after each sequence's length: whatever was there, even what is no number, reaches no valid frame."""
    return x.masked_fill(~valid_frames(lengths.to(x.device), x.size(1))[:, :, None], 0.0)


class LinearInput(nn.Module):
    """A linear layer, no subsampling: F D + D parameters."""

    factor, history, look_ahead, shortest = 1, 0, 0, 1

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.output_size = output_size
        self.linear = nn.Linear(input_size, output_size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T, D), (B,)."""
        _check_length(lengths, self.shortest)
        return self.linear(_without_padding(x, lengths)), lengths


class Conv2dInput(nn.Module):
    """One of ESPnet's Conv2dSubsampling modules, without its positional encoding.

    Args:
        name: `conv2d` (by 4), `conv2d1`, `conv2d2`, `conv2d6` or `conv2d8`.
        input_size: features per frame F.
        output_size: D.
    """

    history = 0

    def __init__(self, name: str, input_size: int, output_size: int):
        super().__init__()
        self.output_size = output_size
        module, self.convolutions = _ESPNET[name]
        self.embed = module(input_size, output_size, 0.0, pos_enc=nn.Identity())
        if isinstance(self.embed.out, nn.Sequential):  # of ESPnet 202511: with the positional encoding
            self.embed.out = self.embed.out[0]
        self.factor = self.shortest = 1
        for kernel, stride in reversed(self.convolutions):
            self.factor *= stride
            self.shortest = (self.shortest - 1) * stride + kernel
        self.look_ahead = self.shortest - 1

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', D), (B,)."""
        _check_length(lengths, self.shortest)
        x, _ = self.embed(_without_padding(x, lengths), None)
        for kernel, stride in self.convolutions:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return x, lengths


class DepthwiseStridingInput(nn.Module):
    """Depthwise-separable striding (NeMo's `dw_striding`, Rekesh et al. 2023, "Fast Conformer").

    A 3x3 convolution with stride 2, then depthwise 3x3 with stride 2 and pointwise 1x1 for each further halving,
    all with `channels` channels whatever the encoder's size, then a linear layer. T' = ceil(T / factor).

    Args:
        input_size: features per frame F.
        output_size: D.
        factor: 4 or 8.
        channels: channels of the convolutions.
    """

    shortest = 1

    def __init__(self, input_size: int, output_size: int, factor: int, channels: int = 64):
        super().__init__()
        self.output_size = output_size
        # Each convolution looks one of its own input frames back and ahead: 1 + 2 + 4 + ... frames.
        self.factor, self.history, self.look_ahead = factor, factor - 1, factor - 1
        self.first = nn.Conv2d(1, channels, 3, 2, 1)
        frequencies = (input_size + 1) // 2
        self.stages = nn.ModuleList()
        for _ in range(factor.bit_length() - 2):
            depthwise = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
            self.stages.append(nn.ModuleDict({"depthwise": depthwise, "pointwise": nn.Linear(channels, channels)}))
            frequencies = (frequencies + 1) // 2
        self.out = nn.Linear(channels * frequencies, output_size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', D), (B,)."""
        _check_length(lengths, self.shortest)
        lengths = lengths.to(x.device)
        # Everything stays in the order (B, T, F, channels): a CPU takes two thirds of the time for matrix products and
        # a depthwise convolution in that order that it takes for ordinary convolutions.
        x = _without_padding(x, lengths)
        lengths = _halved(lengths)
        x = (self._patches(x, lengths) @ torch.cat([self.first.weight.flatten(1).T, self.first.bias[None]])).relu_()
        for stage in self.stages:
            x = stage["depthwise"](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = stage["pointwise"](x)
            lengths = _halved(lengths)
            # Autograd need not know of the zeros in the padding: where its output is 0, ReLU passes no gradient on.
            with torch.no_grad():
                x.masked_fill_(~valid_frames(lengths, x.size(1))[:, :, None, None], 0.0)
            x = x.relu_()
        return self.out(x.flatten(2)), lengths

    @staticmethod
    def _patches(x: Tensor, lengths: Tensor) -> Tensor:
        """What each output of the first convolution sees of (B, T, F), and a one for its bias: (B, T', F', 10).

        All zero in the padding, after the outputs' `lengths`, so that the outputs are. Made of ten contiguous planes: a
        CPU copies them in a third of the time that patch after patch takes it.
        """
        frames, bands = (x.size(1) + 1) // 2, (x.size(2) + 1) // 2
        valid = valid_frames(lengths, frames)[:, :, None].to(x.dtype)
        x = F.pad(x, (1, 1, 1, 1))
        planes = [
            x[:, row : row + 2 * frames - 1 : 2, column : column + 2 * bands - 1 : 2] * valid
            for row in range(3)
            for column in range(3)
        ]
        return torch.stack([*planes, valid.expand_as(planes[0])]).permute(1, 2, 3, 0)


def _halved(lengths: Tensor) -> Tensor:
    return torch.div(lengths + 1, 2, rounding_mode="floor")


class InputState(NamedTuple):
    """What an input layer needs again, or has not used yet, of the frames so far.

    frames: (B, n, F); history: how many of them come before the first frame of the next output.
    """

    frames: Tensor
    history: int


def stream_input(layer: nn.Module, x: Tensor, state: InputState | None, is_final: bool) -> tuple[Tensor, InputState]:
    """Give the next frames of a recording to an input layer.

    Args:
        layer: one of `build_input_layer`.
        x: (B, T, F); T may be 0.
        state: what the call before returned, None at the start.
        is_final: whether the recording ends with `x`.

    Returns:
        the outputs that became certain, (B, T', D), and the state; all outputs in a row are those of the recording.
    """
    # Whole outputs are kept as history, so that what is given to the layer begins at one, and are dropped afterwards.
    kept = -(-layer.history // layer.factor) * layer.factor
    history = 0
    if state is not None:
        x, history = torch.cat([state.frames, x], dim=1), state.history
    frames = x.size(1) - history
    if is_final:
        outputs, end = (1 if frames >= layer.shortest else 0), x.size(1)
    else:
        outputs = max(0, (frames - layer.look_ahead - 1) // layer.factor + 1)
        end = history + (outputs - 1) * layer.factor + layer.look_ahead + 1
    if not outputs:
        return x.new_empty(x.size(0), 0, layer.output_size), InputState(x, history)
    y, _ = layer(x[:, :end], torch.full((x.size(0),), end, device=x.device))
    y = y[:, history // layer.factor :]
    begin = max(0, history + y.size(1) * layer.factor - kept)
    # a copy, since a view would keep all frames in memory
    return y, InputState(x[:, begin:].clone(), history + y.size(1) * layer.factor - begin)


def in_pieces(layer: nn.Module, x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """A batch without padding through an input layer, `frames` frames at a time: the memory of a piece is enough.

    Returns: what `layer(x, lengths)` does, (B, T', D) and (B,).
    """
    outputs, state = [], None
    pieces = x.split(frames, dim=1)
    for number, piece in enumerate(pieces, start=1):
        y, state = stream_input(layer, piece, state, is_final=number == len(pieces))
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    return y, torch.full((len(y),), y.size(1), device=x.device)


def build_input_layer(name: str, input_size: int, output_size: int, channels: int | None = None) -> nn.Module:
    """The input layer called `name`, one of `INPUT_LAYERS`.

    Args:
        name: its name.
        input_size: features per frame F.
        output_size: D.
        channels: of the convolutions of `dw_striding` and `dw_striding8`; None for their default.

    Raises:
        ValueError: unknown name, or channels for a layer that does not take them.
    """
    if name in ("dw_striding", "dw_striding8"):
        options = {} if channels is None else {"channels": channels}
        return DepthwiseStridingInput(input_size, output_size, 8 if name.endswith("8") else 4, **options)
    if name not in INPUT_LAYERS:
        raise ValueError(f"input_layer {name!r} is unknown: one of {', '.join(INPUT_LAYERS)}")
    if channels is not None:
        raise ValueError(f"input_channels {channels} needs input_layer dw_striding or dw_striding8, not {name}")
    if name == "linear":
        return LinearInput(input_size, output_size)
    return Conv2dInput(name, input_size, output_size)
