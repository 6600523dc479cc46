"""The encoder on a recording that arrives in pieces: a state in, outputs and a state out.

A frame attends to its own chunk, so outputs come a chunk at a time; what is before is in the state, whose size does
not depend on how much that was. B: batch, F: features per frame, D: output size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_lmu.encoder.layer import LayerState
from espnet_lmu.encoder.subsampling import InputState, stream_input


class EncoderState(NamedTuple):
    """State between two calls: of the input layer, its outputs of an incomplete chunk (B, n, D), of each layer."""

    input: InputState | None
    pending: Tensor
    layers: tuple[LayerState, ...]


def check_streamable(encoder: nn.Module) -> None:
    """Raise ValueError if the encoder needs a whole recording for its first output."""
    if encoder.bidirectional:
        raise ValueError(
            "this encoder cannot stream: bidirectional: true reads a recording from its end; train it with "
            "bidirectional: false and attention_context: [left, chunk]"
        )
    if encoder.use_cross_attention:
        raise ValueError("this encoder cannot stream: use_cross_attention: true has no streaming task")
    attention = encoder.layers[0].attention
    if attention is not None and attention.context is None:
        raise ValueError(
            "this encoder cannot stream: its self-attention sees the whole recording; train it with "
            "attention_context: [left, chunk]"
        )


def is_streamable(encoder: nn.Module) -> bool:
    """Whether `check_streamable` raises nothing."""
    try:
        check_streamable(encoder)
    except ValueError:
        return False
    return True


def stream(
    encoder: nn.Module,
    x: Tensor,
    state: EncoderState | None,
    is_final: bool,
    ctc: nn.Module | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, EncoderState | None]:
    """Encode the next frames of a batch of recordings.

    Args:
        encoder: an `LMUEncoder` in evaluation mode.
        x: features, (B, T, F); T may be 0, and differ from call to call.
        state: what the call before returned, None at the start.
        is_final: whether the recordings end with `x`.
        ctc: ESPnet's CTC module, for self-conditioned CTC.
        chunk: frames of a chunk of the self-attention, the same in all calls; None for the encoder's
            `streaming_chunk`.

    Returns:
        the outputs that became certain, (B, T', D): all in a row are those of the whole recordings in chunks of this
        size; the state, None after the end.

    Raises:
        ValueError: the encoder cannot stream.
    """
    check_streamable(encoder)
    if encoder.interctc_use_conditioning and ctc is None:
        raise ValueError("interctc_use_conditioning: true needs the CTC layer to stream, which this command gives not")
    if state is None:
        state = EncoderState(
            None, x.new_zeros(len(x), 0, encoder.output_size()), tuple(LayerState() for _ in encoder.layers)
        )
    new, input_state = stream_input(encoder.embed, x, state.input, is_final)
    pending = torch.cat([state.pending, new], dim=1)
    if encoder.layers[0].attention is None:
        chunk = 1
    elif chunk is None:
        chunk = encoder.streaming_chunk
    frames = pending.size(1) if is_final else pending.size(1) // chunk * chunk
    x, pending = pending[:, :frames], pending[:, frames:].clone()
    layer_states = state.layers
    if frames:
        layer_states = []
        for index, (layer, layer_state) in enumerate(zip(encoder.layers, state.layers, strict=True), start=1):
            x, layer_state = layer(x, None, None, chunk=chunk, state=layer_state)
            layer_states.append(layer_state)
            if encoder.interctc_use_conditioning and index in encoder.interctc_layer_idx:
                x = x + encoder.conditioning_layer(ctc.softmax(encoder.out(x)))
    return encoder.out(x), None if is_final else EncoderState(input_state, pending, tuple(layer_states))
