"""Threads of a loop over frames on a CPU."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from espnet_lmu.lmu.products import fast_products

_Result = TypeVar("_Result")

# A thread of a loop over frames has at least this many floating-point operations a frame, and this many sequences: with
# fewer, reading the matrix, which every thread does, takes longer than multiplying (measured with 4 and 16).
_OPERATIONS_OF_A_THREAD = 2_000_000
_SEQUENCES_OF_A_THREAD = 16


@contextlib.contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Run a loop over frames on one CPU thread.

    A frame is about 0.1 ms of work. Several threads would meet at the end of each frame, and whenever another process
    holds a core they all wait for the scheduler: tens of times slower than one thread.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def split_batch(device: torch.device, batch: int, size: int) -> list[slice]:
    """The sequences of each thread that is worth having; a frame is a product (batch, size) x (size, size)."""
    threads = 1
    if device.type == "cpu":
        most = min(batch // _SEQUENCES_OF_A_THREAD, 2 * batch * size**2 // _OPERATIONS_OF_A_THREAD)
        threads = max(1, min(torch.get_num_threads(), most))
    return [slice(batch * number // threads, batch * (number + 1) // threads) for number in range(threads)]


def run_parts(
    run: Callable[..., _Result], parts: list[slice], device: torch.device, size: int, *more: Sequence
) -> list[_Result]:
    """Run a loop over frames for parts of the batch at once: `run(sequences)`, with the part's own item of each `more`.

    Each thread carries its own sequences through all frames and meets the others only at the end. A frame must be worth
    the threads' handing over of the interpreter, some microseconds a call; `split_batch` sees to that.

    Returns: what `run` returned of each part, in their order.
    """
    with single_thread(device), fast_products(parts[0].stop, size, size):
        if len(parts) == 1:
            return [run(*arguments) for arguments in zip(parts, *more, strict=True)]
        inference = torch.is_inference_mode_enabled()

        def run_part(*arguments) -> _Result:
            # These modes belong to a thread; a new one has neither.
            with torch.inference_mode(inference), torch.no_grad():
                return run(*arguments)

        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(run_part, parts, *more))
