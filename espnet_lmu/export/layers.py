"""Layers of the encoder in a form that a graph without Python can hold, with the same numbers and the same weights.

A traced graph has one fixed sequence of operations, so a loop over frames is a TorchScript function (a Loop in ONNX),
what depends on the input's length is computed in the graph, and sequences are masked always, padded or not.

B: batch, T: frames, H: hidden size, d: order, n = H + d, C: memory channels, L: frames per chunk.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.encoder.attention import SelfAttention, rotate
from espnet_lmu.encoder.subsampling import DepthwiseStridingInput
from espnet_lmu.lmu import LMU, LegendreSystem, ParallelLMU
from espnet_lmu.lmu.memory import operators_of
from espnet_lmu.lmu.naive import valid_frames
from espnet_lmu.lmu.original import folded_matrices

# Frames per chunk of the linear memories: their operators, of (L + d) L d numbers, are part of the file.
_CHUNK = 16


@torch.jit.script
def lmu_frames(drive: Tensor, transition: Tensor, hidden: Tensor, state: Tensor) -> Tensor:
    """The loop of the original LMU over its frames (see `lmu/original.py`).

    Args:
        drive: (T, B, n), what the input adds to each frame.
        transition: (n, n), the transpose of G.
        hidden: (n,), true for the entries that tanh is taken of.
        state: (B, n) before the first frame.

    Returns: the states after each frame, (T, B, n).
    """
    states: list[Tensor] = []
    for t in range(drive.size(0)):
        z = torch.addmm(drive[t], state, transition)
        state = torch.where(hidden, z.tanh(), z)
        states.append(state)
    return torch.stack(states)


@torch.jit.script
def chunk_entries(gains: Tensor, transition: Tensor, state: Tensor) -> Tensor:
    """The linear memory before each chunk.

    Args:
        gains: (chunks, B, C, d), what the inputs of each chunk leave at its end.
        transition: (d, d), the transpose of A^L.
        state: (B, C, d) before the first chunk.

    Returns: (chunks, B, C, d).
    """
    entries: list[Tensor] = []
    for k in range(gains.size(0)):
        entries.append(state)
        state = torch.matmul(state, transition) + gains[k]
    return torch.stack(entries)


class LoopLMU(nn.Module):
    """`LMU` for inference, in float32: one matrix product in each frame of a loop.

    Args:
        layer: the trained layer.
    """

    def __init__(self, layer: LMU) -> None:
        super().__init__()
        with torch.no_grad():
            weights = (layer.W_h, layer.W_m, layer.e_h, layer.e_m, layer.A, layer.B)
            G, injection = folded_matrices(*(weight.detach() for weight in weights))
            # what x[t] adds to [p; q], through W_x and through u[t]
            drive = injection @ layer.e_x
            drive[: layer.hidden_size] += layer.W_x
        self.register_buffer("transition", G.T.contiguous())
        self.register_buffer("drive", drive)
        self.register_buffer("hidden", torch.arange(len(G)) < layer.hidden_size)
        self.hidden_size = layer.hidden_size

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `LMU.forward`, but the state returned is the one after frame T; y is meaningless on padding."""
        if state is None:
            entry = x.new_zeros(x.size(0), self.transition.size(0))
        else:
            entry = torch.cat([state[0], state[1]], dim=1)
        drive = F.linear(x.transpose(0, 1), self.drive)
        states = lmu_frames(drive, self.transition, self.hidden, entry)
        last = states[-1]
        y = states[:, :, : self.hidden_size].transpose(0, 1)
        return y, (last[:, : self.hidden_size], last[:, self.hidden_size :])


class ChunkedMemory(nn.Module):
    """The linear Legendre memory by the chunk route of `memory.py`, whose number of chunks is known to Python there.

    Args:
        system: the Legendre system.
    """

    def __init__(self, system: LegendreSystem) -> None:
        super().__init__()
        self.operators = operators_of(system)

    def forward(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the memory.

        Args:
            u: (B, T, C).
            state: (B, C, d) before the first frame, None for zero.

        Returns: the memory (B, T, C, d), and the state after frame T.
        """
        frames = u.size(1)
        operators = self.operators
        operator = operators.chunk(_CHUNK, u)
        # reshape, since the exporter writes the sizes that unflatten finds while tracing into the file
        inputs = F.pad(u, (0, 0, 0, -frames % _CHUNK)).reshape(u.size(0), -1, _CHUNK, u.size(2)).transpose(2, 3)
        gains = (inputs @ operators.impulse(_CHUNK, u).flip(0)).transpose(0, 1)
        state = torch.zeros_like(gains[0]) if state is None else state
        entries = chunk_entries(gains, operators.power(_CHUNK, u).T.contiguous(), state).transpose(0, 1)
        chunks = torch.cat([inputs, entries], dim=-1)
        last = chunks[:, -1] @ operator[:, (frames - 1) % _CHUNK]
        memory = (chunks @ operator.flatten(1)).unflatten(3, (_CHUNK, operators.order))
        return memory.transpose(2, 3).flatten(1, 2)[:, :frames], last


class ChunkedParallelLMU(nn.Module):
    """`ParallelLMU` for inference.

    Args:
        layer: the trained layer.
    """

    def __init__(self, layer: ParallelLMU) -> None:
        super().__init__()
        self.layer = layer
        self.legendre = ChunkedMemory(layer.system)

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `ParallelLMU.forward`, but the state returned is the one after frame T; y is meaningless on padding."""
        layer = self.layer
        memory, last = self.legendre(F.linear(x, layer.W_u, layer.b_u), state)
        return layer.activation(F.linear(x, layer.W_x, layer.b) + F.linear(memory.flatten(2), layer.W_m)), last


class WindowedAttention(nn.Module):
    """`SelfAttention` with a context, for any number of frames: keys are gathered for blocks of queries.

    Args:
        attention: the trained attention.
    """

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, valid: Tensor, chunk: int | None = None) -> Tensor:
        """As `SelfAttention.forward`."""
        attention = self.attention
        left, largest = attention.context
        chunk = largest if chunk is None else chunk
        frames = x.size(1)
        # no longer than the sequence, as a tensor, since Python's min would write the example's length into the file
        block = torch.minimum(torch.as_tensor(chunk * max(1, -(-left // chunk))), torch.as_tensor(frames))
        window = left + block
        missing = -frames % block
        x = attention.norm(x)
        positions = torch.arange(frames, device=x.device)
        query, key, value = (
            project(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.query, attention.key, attention.value)
        )
        query, key = rotate(query, positions), rotate(key, positions)
        # frames of the padded sequence that the queries of each block may see, (blocks, window)
        starts = torch.arange(0, frames, block, device=x.device)
        seen = starts[:, None] + torch.arange(window, device=x.device)
        query = F.pad(query, (0, 0, 0, missing)).reshape(x.size(0), attention.heads, -1, block, query.size(3))
        query = query.transpose(1, 2).flatten(0, 1)
        key, value = (F.pad(z, (0, 0, left, missing))[:, :, seen].transpose(1, 2).flatten(0, 1) for z in (key, value))
        present = F.pad(valid.to(x.dtype), (left, missing))[:, seen].flatten(0, 1) > 0
        first = torch.arange(block, device=x.device)[:, None] // chunk * chunk
        column = torch.arange(window, device=x.device)
        mask = (column >= first) & (column < first + left + chunk) & present[:, None]
        # a row of padding that may see nothing attends to everything, since a softmax over nothing is not a number
        mask = mask | ~mask.any(-1, keepdim=True)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        out = out.transpose(1, 2).flatten(2).unflatten(0, (x.size(0), -1)).flatten(1, 2)[:, :frames]
        return attention.out(out)


class StridingInput(nn.Module):
    """`DepthwiseStridingInput` with ordinary convolutions.

    Args:
        layer: the trained input layer.
    """

    def __init__(self, layer: DepthwiseStridingInput) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `DepthwiseStridingInput.forward`."""
        layer = self.layer
        x = x.masked_fill(~valid_frames(lengths, x.size(1))[:, :, None], 0.0)
        x = layer.first(x[:, None])
        for stage in (None, *layer.stages):
            if stage is not None:
                x = stage["depthwise"](x)
                pointwise = stage["pointwise"]
                x = F.conv2d(x, pointwise.weight[:, :, None, None], pointwise.bias)
            lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
            x = x.relu().masked_fill(~valid_frames(lengths, x.size(2))[:, None, :, None], 0.0)
        return layer.out(x.permute(0, 2, 3, 1).flatten(2)), lengths


_FORMS = {
    LMU: LoopLMU,
    ParallelLMU: ChunkedParallelLMU,
    DepthwiseStridingInput: StridingInput,
}


def exportable(module: nn.Module) -> nn.Module:
    """A copy of a trained module in which every layer that needs another form for a graph has it."""
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is SelfAttention and child.context is not None:
                setattr(parent, name, WindowedAttention(child))
            elif type(child) in _FORMS:
                setattr(parent, name, _FORMS[type(child)](child))
    return module
