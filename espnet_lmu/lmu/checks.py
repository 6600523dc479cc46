"""What layers refuse: options that cannot work, and tensors that would give nonsense."""

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor


def check_counts(**counts: int) -> None:
    """Raise ValueError for a size, or another count given by its name, that is no whole number of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} {count!r} must be a whole number of at least 1")


def check_switches(**switches: bool) -> None:
    """Raise ValueError for an option, given by its name, that is neither true nor false."""
    for name, switch in switches.items():
        if not isinstance(switch, bool):  # text such as "false" would count as true
            raise ValueError(f"{name} {switch!r} must be true or false, without quotation marks")


def check_sequences(x: Tensor, input_size: int, lengths: Tensor | None) -> Tensor | None:
    """Raise ValueError unless x is (B, T, input_size) with T of at least 1, and lengths are as `check_lengths` wants.

    Returns: the lengths on x's device, int64.
    """
    if x.dim() != 3 or x.shape[2] != input_size or x.shape[1] == 0:
        raise ValueError(f"expected x of shape (B, T, {input_size}) with at least one frame, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected x of floating-point numbers, got {x.dtype}")
    return None if lengths is None else check_lengths(lengths, x)


def check_lengths(lengths: Tensor, x: Tensor) -> Tensor:
    """Raise ValueError unless lengths (B,) are whole numbers from 0 to T of x (B, T, ..).

    On a GPU they are not read, because that would wait for it. Returns: the lengths on x's device, int64.
    """
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"expected lengths as a tensor of whole numbers, got {getattr(lengths, 'dtype', lengths)}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"expected {x.shape[0]} lengths, got shape {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and ((lengths < 0) | (lengths > x.shape[1])).any():
        raise ValueError(f"expected lengths from 0 to {x.shape[1]}, got {lengths.tolist()}")
    return lengths.to(x.device, torch.int64)


def check_state(state: Sequence[Tensor], *shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless the tensors of a state have these shapes, which others would be broadcast to."""
    given = [tuple(part.shape) for part in state]
    if given != list(shapes):
        raise ValueError(f"expected a state of shape {' and '.join(map(str, shapes))}, got {given}")
