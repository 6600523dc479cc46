"""The depthwise LMU as a module of a layer, in the place of the Conformer's convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.lmu import DepthwiseLMU
from espnet_lmu.lmu.naive import valid_frames


class DepthwiseModule(nn.Module):
    """Pointwise gate, depthwise LMU, LayerNorm, Swish, pointwise: 3 D^2 + (m (d + 1) + 5) D parameters.

    The Conformer's convolution module (Gulati et al. 2020, "Conformer", figure 2) with a Legendre memory for its
    convolution and LayerNorm for its BatchNorm; m is 2 if the memory runs in both directions, else 1.

    Args:
        size: feature dimension D.
        memory_size: order d of the memories.
        theta: window in frames, or several, spread over the channels.
        discretizer: "zoh" or "euler".
        bidirectional: add a second memory that runs backward in time.
    """

    def __init__(
        self, size: int, memory_size: int, theta: float | Sequence[float], discretizer: str, bidirectional: bool
    ):
        super().__init__()
        self.gate = nn.Linear(size, 2 * size)
        self.forward_memory = DepthwiseLMU(size, memory_size, theta, discretizer)
        self.backward_memory = DepthwiseLMU(size, memory_size, theta, discretizer) if bidirectional else None
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix the frames of each sequence.

        Args:
            x: (B, T, D).
            lengths: valid frames of each sequence, (B,); None for all.
            state: the forward memory before the first frame, (B, D, d); None for an empty one.

        Returns:
            (B, T, D), meaningless on padding, and the forward memory after the last valid frame, (B, D, d).
        """
        x = F.glu(self.gate(x), dim=-1)
        y, state = self.forward_memory(x, lengths, state)
        if self.backward_memory is not None:
            valid = valid_frames(None if lengths is None else lengths.to(x.device), x.size(1))
            if valid is not None:
                x = x.masked_fill(~valid[..., None], 0.0)
            # The memory is empty before the first frame and stays so over zeros: whole rows can be turned around.
            y = y + self.backward_memory(x.flip(1))[0].flip(1)
        return self.out(F.silu(self.norm(y))), state
