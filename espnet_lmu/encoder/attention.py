"""Multi-head self-attention of the encoder: pre-norm, no biases, rotary positions."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.lmu.products import fast_products_in_use

# Scores of a batch that are computed at once: 134 MB where asr.sh lets malloc keep what it has. Elsewhere 17 MB: larger
# tensors then come as new pages each time, which take two to four times as long as the tiles that `_weigh` avoids.
_FEW_SCORES = 1 << (25 if "MALLOC_MMAP_THRESHOLD_" in os.environ else 22)
_POSITIONS = 1 << 14  # the angles of positions up to this one are exact to a thousandth in float32


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, "RoFormer", eq. 34); it has no parameters.

    Args:
        x: queries or keys, (B, heads, T, head size); the head size is even.
        positions: frame index of each of the T positions, (T,).

    Returns:
        `x` with each pair (i, i + half) turned by `positions * 10000^(-i / half)`, same shape and dtype.
    """
    half = x.size(-1) // 2
    # float32 throughout: bf16 has no room for positions above 256.
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.to(torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_rate: float) -> Tensor:
    """`scaled_dot_product_attention` in three steps; a query that may see no key attends to all of them."""
    scores = (query * query.size(-1) ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        # A number so large leaves nothing of the score that it is added to. Unlike a fill it needs no backward pass.
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min / 2)
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout_rate) if dropout_rate else weights) @ value


class Attention(nn.Module):
    """LayerNorm, then multi-head attention with four bias-free projections: 4 D^2 + 2 D parameters.

    Args:
        size: feature dimension D.
        heads: number of heads; D / heads must be an even number.
        dropout_rate: dropout of the attention weights.
    """

    def __init__(self, size: int, heads: int, dropout_rate: float = 0.0):
        super().__init__()
        if heads < 1 or size % heads or (size // heads) % 2:
            raise ValueError(f"output_size {size} must be an even multiple of attention_heads {heads}")
        self.heads = heads
        self.dropout_rate = dropout_rate
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.out = nn.Linear(size, size, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _weigh(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, T, D / heads) each, mask broadcastable to (B, heads, T, keys) -> (B, T, D)."""
        dropout = self.dropout_rate if self.training else 0.0
        # torch's flash attention for CPUs works in small tiles, at whose size oneDNN's products are slow; where all
        # scores are few, plain products are up to nine times faster, forward and backward.
        scores = query.shape[:3].numel() * key.size(2)
        if query.device.type == "cpu" and scores <= _FEW_SCORES and fast_products_in_use():
            out = _plain_attention(query, key, value, mask, dropout)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return self.out(self._weigh(query, key, value, mask))


class AttentionState(NamedTuple):
    """What streaming self-attention remembers: n frames, at most `left`, of the ones before the next chunk.

    key, value: (B, heads, n, D / heads), keys before their rotation; position: index of the next frame.
    """

    key: Tensor
    value: Tensor
    position: int


class SelfAttention(Attention):
    """Attention from each frame to all valid frames, or to those near it, with rotary positions.

    Args:
        size, heads, dropout_rate: as `Attention`.
        context: (left, chunk) in frames limits what a frame attends to: its own chunk of the sequence, which begins
            with chunks of `chunk` frames at frame 0, and `left` frames before that chunk. Time and memory then grow
            linearly with the sequence. None: all frames.
    """

    def __init__(self, size: int, heads: int, dropout_rate: float = 0.0, context: tuple[int, int] | None = None):
        super().__init__(size, heads, dropout_rate)
        if context is not None and not (len(context) == 2 and context[0] >= 0 and context[1] >= 1):
            raise ValueError(f"attention_context {list(context)}: give [left, chunk], at least 0 and 1 frames")
        self.context = None if context is None else (context[0], context[1])

    def forward(self, x: Tensor, valid: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """Attend within the sequences.

        Args:
            x: (B, T, D).
            valid: (B, T), true for frames of the sequence, false for padding; None if there is no padding.
            chunk: frames of a chunk, in place of those of the context.

        Returns:
            (B, T, D), without the residual; rows of padding are meaningless (but finite).
        """
        x = self.norm(x)
        positions = torch.arange(x.size(1), device=x.device)
        query, key = (rotate(self._split(projection(x)), positions) for projection in (self.query, self.key))
        value = self._split(self.value(x))
        if self.context is not None:
            chunk = self.context[1] if chunk is None else chunk
            if chunk < x.size(1):
                return self._attend_nearby(query, key, value, valid, chunk)
        return self._attend(query, key, value, None if valid is None else valid[:, None, None, :])

    def stream(self, x: Tensor, state: AttentionState | None, chunk: int) -> tuple[Tensor, AttentionState]:
        """Attend from the next frames of a sequence, with the same result as `forward` with the whole sequence.

        Args:
            x: (B, T, D), whole chunks, except at the end of the sequence.
            state: what the call before returned, None at the start.
            chunk: frames of a chunk.

        Returns:
            (B, T, D), without the residual, and the state for the next call.
        """
        x = self.norm(x)
        key, value = self._split(self.key(x)), self._split(self.value(x))
        position = 0
        if state is not None:
            key, value = torch.cat([state.key, key], dim=2), torch.cat([state.value, value], dim=2)
            position = state.position
        known = key.size(2) - x.size(1)
        # Only differences of positions matter: small ones keep their precision however long the sequence is.
        positions = torch.arange(key.size(2), device=x.device) + (position - known) % _POSITIONS
        query, rotated = rotate(self._split(self.query(x)), positions[known:]), rotate(key, positions)
        if x.size(1) <= chunk:
            out = self._attend(query, rotated, value, None)
        else:
            out = self._attend_nearby(query, rotated, value, None, chunk)
        old = max(0, key.size(2) - self.context[0])
        # copies, since a view would keep everything in memory
        return out, AttentionState(key[:, :, old:].clone(), value[:, :, old:].clone(), position + x.size(1))

    def _attend_nearby(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, chunk: int) -> Tensor:
        """`_attend` within the context.

        Args:
            query: (B, heads, T, D / heads), from the start of a chunk.
            key, value: (B, heads, n + T, D / heads), with the n (at most `left`) frames before that chunk.
            valid: (B, n + T); None for all.
            chunk: frames of a chunk.

        Returns:
            (B, T, D).
        """
        left = self.context[0]
        batch, _, frames, _ = query.shape
        # The queries of several chunks share one window of keys, so that few keys are copied for a small chunk.
        block = chunk * min(max(1, -(-left // chunk)), -(-frames // chunk))
        window = left + block
        missing = -frames % block
        absent = left + frames - key.size(2)  # frames that the first window wants from before the sequence
        query = F.pad(query, (0, 0, 0, missing)).unflatten(2, (-1, block)).transpose(1, 2).flatten(0, 1)
        key, value = (
            F.pad(x, (0, 0, absent, missing)).unfold(2, window, block).permute(0, 2, 1, 4, 3).flatten(0, 1)
            for x in (key, value)
        )
        if valid is None:
            valid = torch.ones(1, left + frames - absent, dtype=torch.bool, device=query.device)
        present = F.pad(valid, (absent, missing)).unfold(1, window, block).expand(batch, -1, -1).flatten(0, 1)
        first = torch.arange(block, device=query.device)[:, None] // chunk * chunk  # of the query's chunk
        column = torch.arange(window, device=query.device)
        mask = (column >= first) & (column < first + left + chunk) & present[:, None]
        # A row of padding may see nothing; it attends to everything then, since a softmax over nothing is not a number.
        mask = mask | ~mask.any(-1, keepdim=True)
        out = self._weigh(query, key, value, mask[:, None])
        return self.out(out.unflatten(0, (batch, -1)).flatten(1, 2)[:, :frames])


class CrossAttention(Attention):
    """Attention from each frame to a memory, such as the text prompt of ESPnet's s2t_ctc task."""

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """Attend to the memory.

        Args:
            x: (B, T, D).
            memory: (B, M, D).
            memory_mask: (B, 1, M), true for valid entries; None for all.

        Returns:
            (B, T, D), without the residual.
        """
        query, key, value = self.query(self.norm(x)), self.key(memory), self.value(memory)
        mask = None if memory_mask is None else memory_mask[:, None]
        return self._attend(self._split(query), self._split(key), self._split(value), mask)
