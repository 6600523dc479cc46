"""The loops over frames of the original LMU on a GPU: as one launch, whose programs keep the matrix on the chip.

A frame takes little arithmetic, but it reads the whole matrix, and a launch a frame would fetch it anew each time. Here
a program keeps some columns of the matrix, works on some of the sequences, and meets the other programs of these
sequences after each frame, when the state goes from one to the other through the level-2 cache. Persistent RNNs
(Diamos et al., ICML 2016) and FlashRNN (Poeppel et al., 2024) do so too.

The products with h may be of half precision. Those with m are not, because the memory keeps a rounding for its whole
window: with bfloat16 in both, m is 45 times further from float64 than with bfloat16 in those with h alone, and y 15
times (H = 512, d = theta = 256, 400 frames).

Needs Triton. Its interpreter (TRITON_INTERPRET=1) runs programs one after another, so that none can wait for another:
there, a launch is one frame.

B: batch, T: frames, H: hidden size, d: memory size, n = H + d.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED = triton.knobs.runtime.interpret

WARPS = 8  # of a program; each has its own part of the inner dimension of every product
PART = 16  # of a warp, at a time
SEQUENCES = 16  # of a program, the least that tensor cores take
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# Of a launch. Registers of a thread: all there are, of which the compiler may else use fewer and spill. A cooperative
# grid fails instead of waiting for ever where its programs do not all fit.
OPTIONS = {"num_warps": WARPS, "maxnreg": 255, "launch_cooperative_grid": True}


@triton.jit
def _tanh(x):
    size = tl.abs(x)
    decay = tl.exp(-2 * size)
    square = x * x
    # near 0, where 1 - exp(-2x) cancels, the Taylor series, to a relative 1e-8
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    return tl.where(size < 0.25, series, tl.where(x < 0, decay - 1, 1 - decay) / (1 + decay))


@triton.jit
def _meet(arrivals, expected):
    """Wait until programs have come here `expected` times in all; what they stored before can be read after."""
    tl.debug_barrier()  # all threads of this program have stored
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
    while tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu") < expected:
        pass
    tl.debug_barrier()


@triton.jit
def _inner(
    block: tl.constexpr,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    HIDDEN_BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """The places of z that a block of a product reads, (PARTS, PART), and which exist: blocks of h, then of m."""
    offset = tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :]
    if block < HIDDEN_BLOCKS:
        inner = block * (PARTS * PART) + offset
        present = inner < HIDDEN
    else:
        inner = HIDDEN + (block - HIDDEN_BLOCKS) * (PARTS * PART) + offset
        present = inner < SIZE
    return inner, present


@triton.jit(do_not_specialize=["first", "batch", "frames"])
def frames_kernel(
    rows,
    matrix,
    slopes,
    arrivals,
    first,
    batch,
    frames,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    HIDDEN_BLOCKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BACKWARD: tl.constexpr,
    SEQUENCES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    PRODUCTS: tl.constexpr,
    PRECISION: tl.constexpr,
    TOGETHER: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """z[t] = f(z[t] + z[t-1] matrix), in place, for some frames.

    f is tanh on h; backward, where t runs down and the frame before t is t + 1, a product with the frame's slope on h.
    The frames after one another need no second buffer: a row is read by others only once it is written for good.

    rows: where the row (B, n) before the first of these frames lies; their rows follow it, or backward precede it.
    matrix: (n, n).
    slopes: where the row (B, H) of the first of these frames lies, others preceding it; backward only.
    arrivals: zeros, one for each of the grid's groups of sequences.
    first: the first sequence of the grid. Grid: (groups of columns, groups of sequences).
    PRODUCTS, PRECISION: the type of the products with h, and how those of float32 are computed.
    TOGETHER: all programs run at once, so that they can wait for each other; if not, `frames` must be 1.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sequences = first + tl.program_id(1) * SEQUENCES + tl.arange(0, SEQUENCES)
    exists = sequences < batch

    slices = ()
    for block in tl.static_range(BLOCKS):
        inner, present = _inner(block, HIDDEN, SIZE, HIDDEN_BLOCKS, PARTS, PART)
        entries = matrix + inner[:, :, None] * SIZE + columns[None, None, :]
        part = tl.load(entries, present[:, :, None] & (columns < SIZE)[None, None, :], 0.0)
        slices += (part.to(PRODUCTS if block < HIDDEN_BLOCKS else tl.float32),)

    own = sequences[:, None] * SIZE + columns[None, :]
    own_slope = sequences[:, None] * HIDDEN + columns[None, :]
    owned = exists[:, None] & (columns < SIZE)[None, :]
    is_hidden = exists[:, None] & (columns < HIDDEN)[None, :]
    step = batch.to(tl.int64) * (-SIZE if BACKWARD else SIZE)
    value = tl.load(rows + step + own, owned, 0.0)
    if BACKWARD:
        slope = tl.load(slopes + own_slope, is_hidden, 1.0)

    t = 0
    while t < frames:
        t += 1
        before = ()
        for block in tl.static_range(BLOCKS):
            inner, present = _inner(block, HIDDEN, SIZE, HIDDEN_BLOCKS, PARTS, PART)
            # Past the level-1 cache, which knows nothing of what other programs store. With a default value here
            # instead of below, the compiler would use, and so wait for, each block before it loads the next.
            sources = rows + sequences[None, :, None] * SIZE + inner[:, None, :]
            before += (tl.load(sources, exists[None, :, None] & present[:, None, :], cache_modifier=".cg"),)
        total = tl.zeros((PARTS, SEQUENCES, COLUMNS), tl.float32)
        for block in tl.static_range(BLOCKS):
            inner, present = _inner(block, HIDDEN, SIZE, HIDDEN_BLOCKS, PARTS, PART)
            z = tl.where(exists[None, :, None] & present[:, None, :], before[block], 0.0).to(slices[block].dtype)
            if INTERPRETED:  # it would multiply the bits of bfloat16
                total = tl.dot(z.to(tl.float32), slices[block].to(tl.float32), total, input_precision="ieee")
            else:
                total = tl.dot(z, slices[block], total, input_precision=PRECISION)
        value += tl.sum(total, 0)
        if BACKWARD:
            value *= slope
        else:
            value = tl.where(is_hidden, _tanh(value), value)
        rows += step
        tl.store(rows + own, value, owned)

        # what the next frame needs of the slow memory comes while the programs meet
        more = t < frames
        value = tl.load(rows + step + own, owned & more, 0.0)
        if BACKWARD:
            slopes -= batch.to(tl.int64) * HIDDEN
            slope = tl.load(slopes + own_slope, is_hidden & more, 1.0)
        if TOGETHER:
            _meet(arrivals + tl.program_id(1), t * tl.num_programs(0))


def shared_bytes(columns: int, hidden_size: int, size: int, products: torch.dtype, precision: str) -> int:
    """Shared memory of a program that keeps this many columns of the matrix."""
    exact = 8 if precision == "tf32x3" else 4  # tf32x3 keeps a number as the sum of two
    inner = WARPS * PART
    hidden_bytes = exact if products == torch.float32 else products.itemsize
    rows = triton.cdiv(hidden_size, inner) * hidden_bytes + triton.cdiv(size - hidden_size, inner) * exact
    # besides, at a time a block of the state or the parts of the result
    return columns * inner * rows + 8 * SEQUENCES * inner


def compile_time_arguments(
    hidden_size: int, size: int, columns: int, backward: bool, products: torch.dtype, precision: str
) -> dict[str, object]:
    """What `frames_kernel` is compiled for, but TOGETHER."""
    inner = WARPS * PART
    hidden_blocks = triton.cdiv(hidden_size, inner)
    return {
        "HIDDEN": hidden_size,
        "SIZE": size,
        "HIDDEN_BLOCKS": hidden_blocks,
        "BLOCKS": hidden_blocks + triton.cdiv(size - hidden_size, inner),
        "BACKWARD": backward,
        "SEQUENCES": SEQUENCES,
        "COLUMNS": columns,
        "PARTS": WARPS,
        "PART": PART,
        "PRODUCTS": _TYPES[products],
        "PRECISION": precision,
        "INTERPRETED": _INTERPRETED,
    }


def tiling(batch: int, programs: int, shared: int, *matrix) -> tuple[int, int]:
    """Columns of a program, and groups of sequences at a time, that need the fewest launches.

    programs, shared: how many run at once on the GPU, and their shared memory; matrix: the last arguments of
    `shared_bytes`.
    """
    _, size, *_ = matrix
    choices = []
    for columns in (16, 32):
        groups = programs // triton.cdiv(size, columns)
        if groups and shared_bytes(columns, *matrix) <= shared:
            choices.append((triton.cdiv(triton.cdiv(batch, SEQUENCES), groups), columns, groups))
    if not choices:
        raise ValueError(f"route 'persistent': hidden and memory size of {size} together are too large for this GPU")
    _, columns, groups = min(choices)
    return columns, groups


def _run_together(grid: tuple[int, int]) -> bool:
    """Whether all programs of a grid run at once, as on a GPU, and not one after another, as in the interpreter."""
    return not _INTERPRETED or grid == (1, 1)


def _run(rows: Tensor, matrix: Tensor, hidden_size: int, products: torch.dtype, slopes: Tensor | None = None) -> None:
    """`frames_kernel` over all of rows (T + 1, B, n), or backward, given the slopes (T + 1, B, H)."""
    if rows.dtype != torch.float32:
        raise ValueError(f"route 'persistent' computes in float32, not {rows.dtype}")
    if _INTERPRETED:
        programs, shared = 128, 2**18
    elif rows.device.type == "cuda" and torch.cuda.get_device_capability(rows.device) >= (8, 0):
        properties = torch.cuda.get_device_properties(rows.device)
        programs, shared = properties.multi_processor_count, properties.shared_memory_per_block_optin
    else:
        raise ValueError(f"route 'persistent' needs a GPU of compute capability 8.0 or more, not {rows.device}")
    backward = slopes is not None
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
    frames, batch, size = len(rows) - 1, *rows.shape[1:]
    columns, groups = tiling(batch, programs, shared, hidden_size, size, products, precision)
    constants = compile_time_arguments(hidden_size, size, columns, backward, products, precision)
    with torch.cuda.device_of(rows):
        for first in range(0, batch, groups * SEQUENCES):
            grid = triton.cdiv(size, columns), min(groups, triton.cdiv(batch - first, SEQUENCES))
            together = _run_together(grid)
            frames_of_a_launch = frames if together else 1
            for t in range(0, frames, frames_of_a_launch):
                frames_kernel[grid](
                    rows[-1 - t] if backward else rows[t],
                    matrix,
                    slopes[-2 - t] if backward else rows,
                    torch.zeros(grid[1], dtype=torch.int32, device=rows.device),
                    first,
                    batch,
                    frames_of_a_launch,
                    **constants,
                    TOGETHER=together,
                    **OPTIONS,
                )


def run_frames(states: Tensor, transition: Tensor, hidden_size: int, products: torch.dtype) -> None:
    """Fill states (T+1, B, n) in place: row 0 holds the initial state, row t + 1 the drive of frame t.

    products: the type of the products with h: float32, bfloat16 or float16. Those of float32 are exact, unless torch
    may use TF32 for matrix products.
    """
    _run(states, transition, hidden_size, products)


def run_frames_backward(
    grads: Tensor, slopes: Tensor, transition: Tensor, hidden_size: int, products: torch.dtype
) -> None:
    """Turn grads (T, B, n), the outer gradient of z[t], in place into the gradient of [p; q] of each frame.

    slopes (T, B, H): the derivative of tanh. products: as in `run_frames`; but gradients, which may lie outside the
    range of float16, are rounded to bfloat16 instead.
    """
    grads[-1, :, :hidden_size] *= slopes[-1]
    if len(grads) == 1:
        return
    _run(grads, transition, hidden_size, torch.bfloat16 if products == torch.float16 else products, slopes)
