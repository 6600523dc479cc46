"""A causal model as a graph of one chunk: features and a state in, log posteriors and the next state out.

B: batch (streams), C: encoder frames of a chunk, r: feature frames of an encoder frame, W: feature frames that a chunk
needs, F: features per frame, D: output size, V: tokens, L: frames of left context of the attention.

One chunk begins C r feature frames after the other. W is C r where the input layer looks back, and more, for the frames
of the next chunk that it looks ahead to, with ESPnet's convolutions.

The state is a list of tensors of fixed shape, all zero before the first chunk:

    position         (B,) int64       encoder frames so far
    features         (B, r - 1, F)    normalized feature frames before the chunk; only where the input layer looks back
    key, value       (B, heads, L, D / heads)    of each layer with attention
    h and m, or m    what the LMU of each layer returns
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.encoder import streaming as encoder_streaming
from espnet_lmu.encoder.attention import SelfAttention, rotate
from espnet_lmu.encoder.layer import LayerState, LMULayer
from espnet_lmu.errors import UserError
from espnet_lmu.export.graph import OfflineGraph
from espnet_lmu.export.layers import StridingInput
from espnet_lmu.lmu.naive import valid_frames

# Encoder frames of a chunk where the model has no attention, so that any number would do.
ANY_CHUNK = 16


def check_streamable(model: nn.Module) -> None:
    """Raise UserError, naming the option, unless a model can be exported for streaming."""
    from espnet2.layers.utterance_mvn import UtteranceMVN

    if isinstance(model.normalize, UtteranceMVN):
        raise UserError("--streaming: normalize: utterance_mvn needs the whole utterance; train with global_mvn")
    try:
        encoder_streaming.check_streamable(model.encoder)
    except ValueError as error:
        raise UserError(f"--streaming: {error}") from None


class CachedAttention(nn.Module):
    """`SelfAttention.stream` with tensors of fixed size, for one chunk.

    Args:
        attention: the trained attention.
    """

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def stream(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor], chunk: int | None) -> tuple[Tensor, list[Tensor]]:
        """Attend from the frames of one chunk.

        Args:
            x: (B, C, D).
            state: keys before their rotation and values of the L frames before, (B, heads, L, D / heads) each; which
                of them and of the chunk's exist, (B, L + C).

        Returns: (B, C, D) without the residual; the next keys and values.
        """
        attention = self.attention
        key, value, seen = state
        left = key.size(2)
        x = attention.norm(x)
        query, *new = (
            project(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.query, attention.key, attention.value)
        )
        key, value = torch.cat([key, new[0]], dim=2), torch.cat([value, new[1]], dim=2)
        # Only differences of positions matter, so those in the window will do.
        positions = torch.arange(key.size(2), device=x.device)
        query, rotated = rotate(query, positions[left:]), rotate(key, positions)
        out = F.scaled_dot_product_attention(query, rotated, value, attn_mask=seen[:, None, None])
        y = attention.out(out.transpose(1, 2).flatten(2))
        return y, [part[:, :, part.size(2) - left :] for part in (key, value)]


class StreamingGraph(nn.Module):
    """One chunk of a causal model; the form that is traced.

    Args:
        graph: the model for whole utterances.
        chunk: C.

    Attributes:
        shift: C r.
        window: W.
    """

    def __init__(self, graph: OfflineGraph, chunk: int) -> None:
        super().__init__()
        self.graph = graph
        self.chunk = chunk
        encoder = graph.encoder
        self.left = 0
        for layer in encoder.layers:
            if layer.attention is not None:
                layer.attention = CachedAttention(layer.attention.attention)
                self.left = layer.attention.attention.context[0]
        self.lmu_parts = len(self._lmu_state(encoder.layers[0], 1))
        embed = encoder.embed.layer if isinstance(encoder.embed, StridingInput) else encoder.embed
        self.factor, self.history = embed.factor, embed.history
        self.shift = chunk * embed.factor
        self.window = self.shift + embed.look_ahead + 1 - embed.factor

    def initial_state(self, input_size: int, batch: int = 1) -> dict[str, Tensor]:
        """The state before the first chunk, by names; a file's inputs have the same order.

        Args:
            input_size: F.
        """
        encoder = self.graph.encoder
        state = {"position": torch.zeros(batch, dtype=torch.int64)}
        if self.history:
            state["features"] = torch.zeros(batch, self.history, input_size)
        for number, layer in enumerate(encoder.layers):
            if layer.attention is not None:
                heads = layer.attention.attention.heads
                size = (batch, heads, self.left, encoder.output_size() // heads)
                state[f"key.{number}"], state[f"value.{number}"] = torch.zeros(size), torch.zeros(size)
            parts = self._lmu_state(layer, batch)
            for name, part in zip("hm"[-len(parts) :], parts, strict=True):
                state[f"{name}.{number}"] = part
        return state

    def _lmu_state(self, layer: LMULayer, batch: int) -> list[Tensor]:
        """The LMU's state before the first frame, found by running it."""
        with torch.no_grad():
            _, last = layer.lmu(torch.zeros(batch, 1, self.graph.encoder.output_size()))
        return [torch.zeros_like(part) for part in _as_list(last)]

    def _embed_next(self, x: Tensor, lengths: Tensor, position: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized features (B, C r, F) and those before them to (B, C, D), and those that the next chunk needs."""
        layer = self.graph.encoder.embed.layer
        after = torch.cat([before, x], dim=1)[:, -before.size(1) :]
        x = torch.cat([before, x], dim=1)[:, None]
        first = position * self.factor - (self.factor - 1)  # number of the first row of x; rows below 0 are padding
        end = position * self.factor + lengths
        for convolution, pointwise in [
            (layer.first, None),
            *((stage["depthwise"], stage["pointwise"]) for stage in layer.stages),
        ]:
            x = F.conv2d(F.pad(x, (1, 1)), convolution.weight, convolution.bias, stride=2, groups=convolution.groups)
            if pointwise is not None:
                x = F.conv2d(x, pointwise.weight[:, :, None, None], pointwise.bias)
            first = torch.div(first + 1, 2, rounding_mode="floor")
            end = torch.div(end + 1, 2, rounding_mode="floor")
            row = first[:, None] + torch.arange(x.size(2), device=x.device)
            x = x.relu() * ((row >= 0) & (row < end[:, None]))[:, None, :, None]
        return layer.out(x.permute(0, 2, 3, 1).flatten(2)), after

    def forward(self, x: Tensor, lengths: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """One chunk of each stream.

        Args:
            x: features (B, W, F).
            lengths: (B,) valid frames: W, except in the last chunk of a stream, or the last two.
            state: see the top of the file.

        Returns: log posteriors (B, C, V), their valid frames (B,), and the next state.
        """
        encoder = self.graph.encoder
        position, *parts = state
        parts = iter(parts)
        x = self.graph.normalize(x, lengths)
        following = []
        if self.history:
            x, features = self._embed_next(x, lengths, position, next(parts))
            frames = torch.div(lengths + self.factor - 1, self.factor, rounding_mode="floor")
            following.append(features)
        else:
            x, frames = encoder.embed(x, lengths)
            frames = frames.clamp(min=0)
        known = torch.arange(-self.left, 0, device=x.device) >= -position[:, None]
        seen = torch.cat([known, valid_frames(frames, self.chunk)], dim=1)
        for index, layer in enumerate(encoder.layers, start=1):
            cache = None if layer.attention is None else (next(parts), next(parts), seen)
            memory = tuple(next(parts) for _ in range(self.lmu_parts))
            entry = LayerState(cache, memory if self.lmu_parts > 1 else memory[0])
            x, after = layer(x, None, None, state=entry)
            following += [] if cache is None else after.attention
            following += _as_list(after.lmu)
            if encoder.interctc_use_conditioning and index in encoder.interctc_layer_idx:
                x = x + encoder.conditioning_layer(self.graph.ctc(encoder.out(x)).softmax(-1))
        log_probs = self.graph.ctc(encoder.out(x)).log_softmax(-1)
        return log_probs, frames, position + frames, *following


class Zipformer2Graph(nn.Module):
    """A `StreamingGraph` with the inputs, outputs and metadata of sherpa-onnx's online zipformer2 CTC models.

    sherpa-onnx makes the tensors of the state by the sizes in the metadata: six for each layer of a Zipformer, one for
    its input layer, a counter. Here the cached keys of a single layer hold all of a stream's state, one after the
    other, the counter holds its position, and the rest, as small as may be, goes through as it is.

    Args:
        step: one chunk.
        input_size: F.
    """

    def __init__(self, step: StreamingGraph, input_size: int) -> None:
        super().__init__()
        self.step = step
        _, *parts = step.initial_state(input_size).values()
        self.shapes = [part.shape[1:] for part in parts]
        self.sizes = [math.prod(shape) for shape in self.shapes]

    def metadata(self) -> dict[str, int]:
        """What sherpa-onnx wants to know of the state and of the feature frames of a chunk."""
        return {
            "encoder_dims": 4,  # three quarters of it are a size, which must not be 0
            "query_head_dims": sum(self.sizes),
            "value_head_dims": 1,
            "num_heads": 1,
            "num_encoder_layers": 1,
            "cnn_module_kernels": 3,
            "left_context_len": 1,
            "T": self.step.window,
            "decode_chunk_len": self.step.shift,
        }

    def initial_state(self, batch: int = 1) -> dict[str, Tensor]:
        """The state that sherpa-onnx begins with, by Zipformer's names; its batch is the second dimension of some."""
        return {
            "cached_key": torch.zeros(1, batch, sum(self.sizes)),
            "cached_nonlin_attn": torch.zeros(1, batch, 1, 3),
            "cached_val1": torch.zeros(1, batch, 1),
            "cached_val2": torch.zeros(1, batch, 1),
            "cached_conv1": torch.zeros(batch, 4, 1),
            "cached_conv2": torch.zeros(batch, 4, 1),
            "embed_states": torch.zeros(batch, 128, 3, 19),
            "processed_lens": torch.zeros(batch, dtype=torch.int64),
        }

    def forward(self, x: Tensor, key: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """(B, W, F) and the state to log posteriors (B, C, V) and the next state; every chunk is a whole one."""
        *unused, position = others
        parts = [
            part.unflatten(1, shape) for part, shape in zip(key[0].split(self.sizes, dim=1), self.shapes, strict=True)
        ]
        lengths = torch.full_like(position, self.step.window)
        log_probs, _, position, *parts = self.step(x, lengths, position, *parts)
        return log_probs, torch.cat([part.flatten(1) for part in parts], dim=1)[None], *unused, position


def _as_list(state: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)
