"""Memory that a training step keeps for the way back, counted in forward passes of two and three utterances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from espnet_lmu.encoder.attention import Attention
from espnet_lmu.encoder.parameters import build_encoder, feature_size
from espnet_lmu.encoder.subsampling import TooShortUttError
from espnet_lmu.errors import UserError


def batch_memory(config: Path, vocab_size: int, batch_size: int, frames: int, report: dict) -> dict:
    """Training memory of a batch, for `report` of `count_parameters`, in GB of 2^30 bytes.

    Returns:
        `batch_size`, `frames`, whether `mixed_precision` (use_amp) and `gradient_checkpointing` are on,
        `activations_gb`, `total_gb` with weights, gradients and Adam's moments.

    Raises:
        UserError: as `build_encoder`, or fewer than one utterance or frame.
    """
    for name, value in (("batch_size", batch_size), ("frames", frames)):
        if value < 1:
            raise UserError(f"--{name} {value}: give at least 1")
    settings = build_encoder(config)[1]
    mixed_precision = bool(settings.get("use_amp"))
    activations = activation_bytes(config, vocab_size, batch_size, frames, mixed_precision) / 2**30
    return {
        "batch_size": batch_size,
        "frames": frames,
        "mixed_precision": mixed_precision,
        "gradient_checkpointing": bool((settings.get("encoder_conf") or {}).get("gradient_checkpointing")),
        "activations_gb": activations,
        "total_gb": activations + report["training_memory_gb"]["total"],
    }


def activation_bytes(config: Path, vocab_size: int, batch_size: int, frames: int, mixed_precision: bool) -> float:
    """Bytes that autograd keeps of a batch of `batch_size` utterances of `frames` frames, CTC layer included.

    Kept tensors grow with the number of utterances: those of two and of three, on a CPU, tell the rest (of a single one
    some operations keep less).
    Attention counts with the kernels for GPUs, which keep no matrix of weights, and with the longest of the chunks that
    `attention_context` lists. With gradient checkpointing, inputs of all layers and what one of them keeps are there at
    a time. What operations take for a moment comes on top.

    Raises:
        UserError: as `build_encoder`, or too few frames for the input layer.
    """
    encoder, settings = build_encoder(config, "cpu")
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, Attention):
            module.dropout_rate = 0.0  # with it, the kernel for CPUs would keep the weights
    use_checkpointing, encoder.gradient_checkpointing = encoder.gradient_checkpointing, False
    encoder.chunks = ()  # of which training draws one
    output = nn.Linear(encoder.output_size(), vocab_size)
    if encoder.interctc_use_conditioning:
        encoder.conditioning_layer = nn.Linear(vocab_size, encoder.output_size())
    # All layers, their inputs, everything.
    try:
        two, three = (
            np.array(_count(encoder, output, torch.randn(count, frames, feature_size(settings)), mixed_precision))
            for count in (2, 3)
        )
    except TooShortUttError as error:
        raise UserError(f"--frames {frames}: the input layer needs {error.limit} at least") from None
    # What does not grow (weights in half precision) is there once.
    all_layers, inputs, everything = two + (batch_size - 2) * (three - two)
    if use_checkpointing:
        everything += inputs + all_layers / len(encoder.layers) - all_layers
    return float(everything)


class _Ctc:
    """What self-conditioned layers need of ESPnet's CTC module."""

    def __init__(self, output: nn.Module):
        self.output = output

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(x).softmax(-1)


def _count(
    encoder: nn.Module, output: nn.Module, features: torch.Tensor, mixed_precision: bool
) -> tuple[int, int, int]:
    """Bytes kept of utterances (B, T, features): by the layers, as their inputs, and by everything."""
    sizes: dict[str, dict[int, int]] = {"layers": {}, "others": {}}
    weights = {own.untyped_storage().data_ptr() for own in [*encoder.parameters(), *encoder.buffers()]}
    place, inputs, alive = "others", 0, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[place].setdefault(storage.data_ptr(), storage.nbytes())
            alive.append(storage)  # so that no other one takes its address
        return tensor

    def enter(_, arguments) -> None:
        nonlocal place, inputs
        place, inputs = "layers", inputs + arguments[0].nbytes

    def leave(*_) -> None:
        nonlocal place
        place = "others"

    handles = [layer.register_forward_pre_hook(enter) for layer in encoder.layers]
    handles += [layer.register_forward_hook(leave) for layer in encoder.layers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            outputs, *_ = encoder(features, torch.full(features.shape[:1], features.shape[1]), ctc=_Ctc(output))
            if encoder.interctc_layer_idx:
                last, intermediate = outputs
                outputs = torch.cat([last, *(projected for _, projected in intermediate)])
            scores = output(outputs)
        scores.float().log_softmax(-1)
    for handle in handles:
        handle.remove()
    layers = sum(sizes["layers"].values())
    return layers, inputs, layers + sum(size for key, size in sizes["others"].items() if key not in sizes["layers"])
