"""The loop over frames of the original LMU as compiled code, for a CPU and float32: frames.cpp.

setup.py builds it where there is a C++ compiler. Without it the loop launches its operations through torch (loops.py),
with the same results but for rounding.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

_ALIGNMENT = 16  # columns, of the widest vector

# A part of the batch, which a thread carries through all frames, has at least this many sequences: with fewer, reading
# the matrix, which every thread does, takes longer than multiplying. And it has at least this many floating-point
# operations, a tenth of a millisecond: less is not worth waking a thread. Both measured.
_SEQUENCES_OF_A_PART = 4
_OPERATIONS_OF_A_PART = 20_000_000


@functools.cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_frames{suffix}")
        if path.exists():
            number, pointer = ctypes.c_int64, ctypes.c_void_p
            try:
                library = ctypes.CDLL(str(path))
                library.widest_vector.restype = number
                run = library.run_frames_of_parts
                run.argtypes = [number, *[pointer, number, number] * 2, pointer, *[number] * 7, pointer]
                run.restype = None
            except (OSError, AttributeError):  # of another kind of machine, or of another version of frames.cpp
                return None
            return library
    return None


def is_built() -> bool:
    """Whether the compiled loop is there."""
    return _library() is not None


@functools.cache
def widest_vector() -> int:
    """The float32 numbers of the widest vectors that this processor multiplies."""
    return _library().widest_vector()


@functools.cache
def _parallel_region() -> int | None:
    """The address of GOMP_parallel(function, argument, threads, flags) of the OpenMP library that torch runs on.

    Its threads, and no others: after each of its operations torch's own keep their cores busy for some milliseconds.
    None where torch runs on another library.
    """
    try:
        openmp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return ctypes.cast(openmp.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def parts_of_batch(frames: int, batch: int, size: int) -> int:
    """Into how many parts, each on a thread of its own, the compiled loop splits the batch.

    The threads meet only at the end, so that another busy process costs its share of a core and no more.
    """
    if _parallel_region() is None:
        return 1
    operations = 2 * frames * batch * size**2
    most = min(batch // _SEQUENCES_OF_A_PART, operations // _OPERATIONS_OF_A_PART)
    return max(1, min(torch.get_num_threads(), most))


def aligned(matrix: Tensor) -> Tensor:
    """The matrix with rows that begin a multiple of 16 columns apart, which the compiled loop reads without a copy."""
    rows, columns = matrix.shape
    apart = columns + -columns % _ALIGNMENT
    if matrix.stride() == (apart, 1) and matrix.storage_offset() == 0:
        return matrix
    return matrix.new_zeros(rows, apart)[:, :columns].copy_(matrix)


def runs(rows: Tensor) -> bool:
    """Whether the compiled loop is there and takes tensors of this one's device and type.

    Who traces the operations (torch.compile, make_fx), which cannot look into it, gets the loop that torch runs.
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return False
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return False
    return is_built()


def run_frames(
    rows: Tensor, matrix: Tensor, hidden_size: int, lanes: int | None = None, parts: int | None = None
) -> None:
    """`loops.run_frames` of float32 rows.

    Args:
        lanes: the width of vectors, 4, 8 or 16; None for the widest.
        parts: of the batch; None for those of `parts_of_batch`.
    """
    _run(rows, rows, 1, None, matrix, hidden_size, lanes, parts)


def run_frames_backward(
    rows: Tensor, outputs: Tensor, matrix: Tensor, lanes: int | None = None, parts: int | None = None
) -> None:
    """`loops.run_frames_backward` of float32 rows, the last of which is complete; the rest as of `run_frames`."""
    _run(rows, rows[-1:], -1, outputs, matrix, outputs.shape[2], lanes, parts)


def _run(
    rows: Tensor,
    start: Tensor,
    direction: int,
    outputs: Tensor | None,
    matrix: Tensor,
    hidden_size: int,
    lanes: int | None,
    parts: int | None,
) -> None:
    if rows.stride(2) != 1 or outputs is not None and outputs.stride(2) != 1:
        raise ValueError("the numbers of a row must lie side by side")
    of_outputs = (None, 0, 0)  # nor have outputs of no columns an address, and then no column has tanh
    if outputs is not None:
        of_outputs = outputs[-1:].data_ptr(), direction * outputs.stride(0), outputs.stride(1)
    matrix = aligned(matrix)
    frames, batch, size = len(rows) - 1, *rows.shape[1:]
    if parts is None:
        parts = parts_of_batch(frames, batch, size)
    _library().run_frames_of_parts(
        widest_vector() if lanes is None else lanes,
        start.data_ptr(),
        direction * rows.stride(0),
        rows.stride(1),
        *of_outputs,
        matrix.data_ptr(),
        matrix.stride(0),
        frames,
        batch,
        size,
        hidden_size,
        parts,
        # Fewer threads than torch has would make the library end the others, and torch start them again.
        max(parts, torch.get_num_threads()),
        _parallel_region() if parts > 1 else None,
    )
