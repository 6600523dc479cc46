"""The floor of a computation: the time that the device needs for its matrix products alone, as measured here."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_lmu.lmu.original import frames_one_by_one


def matrix_speed(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Floating-point operations per second of a large square matrix product, the best of eight."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        _ = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


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
