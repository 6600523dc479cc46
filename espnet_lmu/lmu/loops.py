"""A loop over frames on a CPU, and its threads."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from espnet_lmu.lmu import native
from espnet_lmu.lmu.products import fast_products

_Result = TypeVar("_Result")

# A thread of a loop over frames has at least this many floating-point operations a frame, and this many sequences: with
# fewer, reading the matrix, which every thread does, takes longer than multiplying (measured with 4 and 16).
_OPERATIONS_OF_A_THREAD = 2_000_000
_SEQUENCES_OF_A_THREAD = 16

_one_by_one = False


@contextlib.contextmanager
def frames_one_by_one() -> Iterator[None]:
    """Launch every frame by itself, on any device and route, for what counts or profiles the operations of a loop."""
    global _one_by_one
    _one_by_one = True
    try:
        yield
    finally:
        _one_by_one = False


def one_by_one() -> bool:
    """Whether `frames_one_by_one` holds."""
    return _one_by_one


def is_compiled(rows: Tensor) -> bool:
    """Whether `run_frames` of such rows is the compiled loop."""
    return native.runs(rows) and not _one_by_one


def run_frames(rows: Tensor, matrix: Tensor, hidden_size: int) -> None:
    """Fill rows (T+1, B, n) in place from row 0 on:

        rows[t] = [tanh(p); q]        [p; q] = rows[t] + rows[t-1] @ matrix

    Args:
        matrix: (n, n).
        hidden_size: columns of p.
    """
    if is_compiled(rows):
        native.run_frames(rows, matrix, hidden_size)
        return
    hidden = rows[..., :hidden_size].unbind(0)
    rows = rows.unbind(0)
    for t in range(1, len(rows)):
        rows[t].addmm_(rows[t - 1], matrix)
        hidden[t].tanh_()


def run_frames_backward(rows: Tensor, outputs: Tensor, matrix: Tensor) -> None:
    """Turn rows (T, B, n), the outer gradient of each [tanh(p); q], in place into that of [p; q]:

        rows[t] = (rows[t] + rows[t+1] @ matrix) * [1 - outputs[t]^2; 1]

    Args:
        outputs: (T, B, H), of tanh.
        matrix: (n, n).
    """
    hidden = rows[..., : outputs.shape[2]]
    hidden[-1].mul_(1 - outputs[-1] ** 2)
    if is_compiled(rows):
        native.run_frames_backward(rows, outputs, matrix)
        return
    hidden = hidden.unbind(0)
    slopes = torch.addcmul(rows.new_ones(()), outputs, outputs, value=-1).unbind(0)
    rows = rows.unbind(0)
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addmm_(rows[t + 1], matrix)
        hidden[t].mul_(slopes[t])


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


def split_batch(rows: Tensor, size: int) -> list[slice]:
    """The sequences of each thread that is worth having.

    Args:
        rows: (.., B, ..) with the batch in dimension 1; the loop works on its device and in its type.
        size: a frame is a product (B, size) x (size, size).
    """
    batch, threads = rows.shape[1], 1
    if rows.device.type == "cpu" and not _one_by_one:
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
