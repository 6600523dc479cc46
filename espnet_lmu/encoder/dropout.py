"""Dropout that does not hold a CPU up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on a CPU, one random number serves eight elements.

    Drawing a number for each element takes a CPU as long as a matrix product of the layer. There the probability is
    rounded to a multiple of 1/256, and the scale fits the rounded one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, the same shape."""
        kept = round(256 * (1 - self.p))
        if not self.training or x.device.type != "cpu" or kept in (0, 256):
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = bits.view(torch.uint8)[: x.numel()].view(x.shape) < kept
        return x * keep.to(x.dtype).mul_(256 / kept)
