"""One layer of the encoder: self-attention, then a Legendre Memory Unit, each pre-norm with a residual."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.encoder.attention import AttentionState, CrossAttention, SelfAttention
from espnet_lmu.encoder.dropout import Dropout


class SwiGLU(nn.Module):
    """SiLU of one half of the features times the other half (Shazeer 2020, "GLU variants improve Transformer")."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., 2 units) -> (..., units)."""
        gate, units = x.chunk(2, dim=-1)
        return F.silu(gate) * units


class FeedForward(nn.Sequential):
    """LayerNorm, then a position-wise network with one hidden layer of `units`: 2 D units + units + 3 D parameters.

    If `gated`, each unit has a gate of its own: 3 D units + 2 units + 3 D parameters.
    """

    def __init__(self, size: int, units: int, gated: bool, dropout_rate: float):
        super().__init__(
            nn.LayerNorm(size),
            nn.Linear(size, 2 * units if gated else units),
            SwiGLU() if gated else nn.SiLU(),
            Dropout(dropout_rate),
            nn.Linear(units, size),
        )


class LayerState(NamedTuple):
    """What a layer remembers of the frames before; None at the start of a sequence and for what it lacks."""

    attention: AttentionState | None = None
    lmu: Any = None  # as the LMU returns it


class LMULayer(nn.Module):
    """x + attention(x), then x + LMU(norm(x)), then x + cross_attention(x, memory), then x + feed_forward(x).

    Args:
        size: feature dimension D.
        lmu: a module from D to D: (x, lengths, state) -> (y, state).
        attention: the self-attention in front (with a norm of its own), or None.
        cross_attention: attention to a memory (with a norm of its own), or None.
        linear_units: hidden units of the feed-forward module; 0 for none, as in the published model.
        gated_linear_units: whether they are gated.
        dropout_rate: dropout of each branch before it is added.
    """

    def __init__(
        self,
        size: int,
        lmu: nn.Module,
        attention: SelfAttention | None,
        cross_attention: CrossAttention | None = None,
        linear_units: int = 0,
        gated_linear_units: bool = False,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.attention = attention
        if attention is not None:
            # With torch's start CTC stays at blanks for epochs longer (measured: egs/mini_librispeech/asr1/RESULTS.md),
            # so the branch starts at zero (as in Zhang et al. 2019, "Fixup initialization") and grows where it helps.
            nn.init.zeros_(attention.out.weight)
        self.norm = nn.LayerNorm(size)
        self.lmu = lmu
        self.cross_attention = cross_attention
        self.feed_forward = None
        if linear_units:
            self.feed_forward = FeedForward(size, linear_units, gated_linear_units, dropout_rate)
        self.dropout = Dropout(dropout_rate)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None,
        valid: Tensor | None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        chunk: int | None = None,
        state: LayerState | None = None,
    ) -> tuple[Tensor, LayerState | None]:
        """One layer.

        Args:
            x: (B, T, D).
            lengths: valid frames of each sequence, (B,); None if there is no padding.
            valid: the same as (B, T).
            memory: (B, M, D), for the cross-attention.
            memory_mask: (B, 1, M), true for valid entries; None for all.
            chunk: frames of a chunk of the self-attention, in place of those of its context.
            state: for streaming, what the call with the frames before returned; x then holds whole chunks.

        Returns:
            (B, T, D); the state after the last frame, None without a state before the first.
        """
        attention_state = None
        if self.attention is not None:
            if state is None:
                y = self.attention(x, valid, chunk)
            else:
                y, attention_state = self.attention.stream(x, state.attention, chunk)
            x = x + self.dropout(y)
        y, lmu_state = self.lmu(self.norm(x), lengths, None if state is None else state.lmu)
        x = x + self.dropout(y)
        if self.cross_attention is not None and memory is not None:
            x = x + self.dropout(self.cross_attention(x, memory, memory_mask))
        if self.feed_forward is not None:
            x = x + self.dropout(self.feed_forward(x))
        return x, None if state is None else LayerState(attention_state, lmu_state)
