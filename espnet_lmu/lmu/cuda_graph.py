"""The loops over frames of the original LMU on a GPU: as captured CUDA graphs of many frames.

A frame is a small product and a pointwise operation, which a GPU does in less time than the CPU takes to launch them.
A graph launches those of `FRAMES` frames at once. It works in buffers of its own, into which the frames are copied.

B: batch, n: hidden size + memory size.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

FRAMES = 64  # of a graph
SEQUENCES = 8  # a graph's batch is a multiple of, so that batches of many sizes share a few graphs

Run = Callable[[], None]
Capture = Callable[[Run, torch.device], Run]


def capture(run: Run, device: torch.device) -> Run:
    """Capture the GPU work of `run`; returns what does that work again."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run()  # what the first call sets up, such as cuBLAS's workspace, cannot be captured
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Without a stream, torch would capture on one that it keeps for all devices, perhaps of another one. Other
        # threads, such as the one that pins batches of a data loader, go on with what a capture forbids.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
    return graph.replay


class ForwardFrames:
    """z[t] = [tanh(p); q], [p; q] = drive[t] + z[t-1] transition, `FRAMES` frames at a time.

    With fewer sequences than the graph has, what is computed of the others means nothing.

    Args:
        batch, size, hidden_size: the greatest B, n and the hidden size.
        like: a tensor of the device and type to work in.
        capture: makes one launch of many.
    """

    def __init__(self, batch: int, size: int, hidden_size: int, like: Tensor, capture: Capture = capture):
        self.states = like.new_zeros(FRAMES + 1, batch, size)
        self.transition = like.new_zeros(size, size)
        rows, hidden = self.states.unbind(0), self.states[..., :hidden_size].unbind(0)

        def run() -> None:
            for t in range(1, FRAMES + 1):
                rows[t].addmm_(rows[t - 1], self.transition)
                hidden[t].tanh_()

        self.replay = capture(run, like.device)
        self.lock = threading.Lock()  # the buffers serve one thread at a time

    def __call__(self, states: Tensor, transition: Tensor) -> None:
        """Fill states (T+1, B, n) in place: row 0 holds the initial state, row t + 1 the drive of frame t."""
        batch = states.shape[1]
        with self.lock:
            self.transition.copy_(transition)
            for start in range(0, len(states) - 1, FRAMES):
                rows = states[start : start + FRAMES + 1]
                self.states[: len(rows), :batch].copy_(rows)
                self.replay()
                rows[1:].copy_(self.states[1 : len(rows), :batch])


class BackwardFrames:
    """The gradient of [p; q] from that of z, `FRAMES` frames at a time; arguments as `ForwardFrames`."""

    def __init__(self, batch: int, size: int, hidden_size: int, like: Tensor, capture: Capture = capture):
        self.grads = like.new_zeros(FRAMES + 1, batch, size)
        self.slopes = like.new_zeros(FRAMES, batch, hidden_size)
        self.transition = like.new_zeros(size, size)
        rows, hidden = self.grads.unbind(0), self.grads[..., :hidden_size].unbind(0)
        slope = self.slopes.unbind(0)

        def run() -> None:
            for t in range(FRAMES - 1, -1, -1):
                rows[t].addmm_(rows[t + 1], self.transition)
                hidden[t].mul_(slope[t])

        self.replay = capture(run, like.device)
        self.lock = threading.Lock()

    def __call__(self, grads: Tensor, slopes: Tensor, transition: Tensor) -> None:
        """Turn grads (T, B, n), the outer gradient of z[t], in place into the gradient of [p; q] of each frame.

        slopes (T, B, H): the derivative of tanh.
        """
        batch = grads.shape[1]
        with self.lock:
            self.transition.copy_(transition)
            self.grads[-1].zero_()  # nothing comes after the last frame
            for end in range(len(grads), 0, -FRAMES):
                rows = grads[max(0, end - FRAMES) : end]
                if end < len(grads):
                    self.grads[-1, :batch].copy_(grads[end])
                self.grads[-1 - len(rows) : -1, :batch].copy_(rows)
                self.slopes[-len(rows) :, :batch].copy_(slopes[end - len(rows) : end])
                self.replay()
                rows.copy_(self.grads[-1 - len(rows) : -1, :batch])


@functools.lru_cache(maxsize=32)
def _captured(kind: type, batch: int, size: int, hidden_size: int, device: torch.device, dtype: torch.dtype):
    """A captured loop, or None where the GPU or its driver cannot capture."""
    try:
        # Buffers made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            return kind(batch, size, hidden_size, torch.empty(0, device=device, dtype=dtype))
    except RuntimeError as error:
        warnings.warn(
            f"LMU: no CUDA graph ({str(error).splitlines()[0]}); frames are launched one by one", stacklevel=2
        )
        return None


def captured(kind: type, rows: Tensor, hidden_size: int):
    """The captured loop of `kind` for rows (T, B, n), or None if there is none or the loop is itself being captured."""
    if rows.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    batch = -(-rows.shape[1] // SEQUENCES) * SEQUENCES
    return _captured(kind, batch, rows.shape[2], hidden_size, rows.device, rows.dtype)
