"""The floor of a computation: the time that the device needs for its matrix products alone, as measured here.

Or, where what must go through memory is known, the time for that, if it is more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_lmu.lmu.loops import frames_one_by_one


class Speed(NamedTuple):
    """What a device reaches: floating-point operations and bytes of memory per second."""

    operations: float
    bytes: float


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the best of eight."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def measure_speed(device: torch.device, dtype: torch.dtype = torch.float32) -> Speed:
    """The speed of a large square matrix product of this type, and of a copy of what no cache holds."""
    # large enough for the call itself to take no part of the time
    size, values = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(values, device=device)
    target = torch.empty_like(source)
    operations = 2 * size**3 / _fastest(lambda: a @ b, device)
    return Speed(operations, 2 * source.nbytes / _fastest(lambda: target.copy_(source), device))


def _addmm_operations(_, a_shape, b_shape, **kwargs) -> int:
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def count_operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that a call runs, by torch's counter."""
    # The counter does not know the product that adds in place, which the original LMU's loop consists of.
    in_place = {torch.ops.aten.addmm_: _addmm_operations}
    # Nor does it see into a captured graph or a kernel of our own.
    with frames_one_by_one(), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return counter.get_total_flops()
