"""`specaug: vtlp_specaug` for ESPnet: SpecAugment after a change of the speaker's vocal tract."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from espnet2.asr.specaug.specaug import SpecAug
from torch import Tensor


class VTLPSpecAug(SpecAug):
    """Vocal tract length perturbation, then ESPnet's SpecAug.

    A vocal tract of another length scales the formants. The positions of an utterance's bands are divided by a factor
    of its own (Jaitly & Hinton 2013, "Vocal Tract Length Perturbation (VTLP) improves speech recognition"), here along
    the mel axis, so that it works on any filterbank. Above 1 the spectrum shrinks, and the highest band fills the rest.

    Args:
        vtlp_range: the smallest and the largest factor.
        specaug_conf: all other options are those of `specaug`.

    Raises:
        ValueError: a range that is not two positive numbers in order.
    """

    def __init__(self, vtlp_range: Sequence[float] = (0.9, 1.1), **specaug_conf):
        try:
            low, high = map(float, vtlp_range)
        except (TypeError, ValueError):
            low = high = 0.0
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"vtlp_range {vtlp_range}: give two positive factors, the smaller one first")
        super().__init__(**specaug_conf)
        self.vtlp_range = (low, high)

    def forward(self, x: Tensor, x_lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, T, F) log filterbanks -> the same shape."""
        factors = torch.empty(len(x), 1, device=x.device).uniform_(*self.vtlp_range)
        return super().forward(stretch_bands(x, factors), x_lengths)


def stretch_bands(x: Tensor, factors: Tensor) -> Tensor:
    """Band f of (B, T, F) takes the value at band f * factor (B, 1), interpolated linearly."""
    bands = x.size(2)
    position = (torch.arange(bands, device=x.device) * factors).clamp(max=bands - 1)
    below = position.long().clamp(max=max(0, bands - 2))
    weight = (position - below).to(x.dtype)[:, None]
    lower, upper = (x.gather(2, band[:, None].expand_as(x)) for band in (below, (below + 1).clamp(max=bands - 1)))
    return torch.lerp(lower, upper, weight)
