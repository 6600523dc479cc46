"""The original LMU with its memory taken out of the loop over frames: for a CPU and a memory of high order.

B: batch, T: frames, H: hidden size, d: memory size, C: frames of a window, n = H + C.

Over a window of C frames that begins with the memory m0, the memory is linear in what enters it:

    m[t] = A^t m0 + K w[t]        w[t] = (u[t], u[t-1], .., u[t-C+1])        K = [ B, A B, .., A^(C-1) B ]

where u before the window counts as zero. With z = [h; w] in place of [h; m] (see original.py), a frame is again
z[t] = [tanh(p); q], [p; q] = drive[t] + G z[t-1], but G is of n rows with a C that may be much smaller than d:

    G = [ W_h + W_m B e_h    M K   ]      drive[t] = [ (W_x + W_m B e_x) x[t] + M A^(t-1) m0   ]
        [ e_h                e_m K ]                 [ e_x x[t]               + e_m A^(t-1) m0 ]
        [ 0                  shift ]                 [ 0                                       ]

where M = W_m A + W_m B e_m and `shift` moves the window by a frame. A^t m0 is a loop of its own, with a small matrix;
what is gone from both, M and K applied to all frames of a window, are two products of many rows. They run on the
loop's one thread: two threads would meet at each, and wait for whatever else runs on the machine each time.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_lmu.lmu.loops import is_compiled, run_frames, run_frames_backward, run_parts, split_batch
from espnet_lmu.lmu.naive import valid_frames
from espnet_lmu.lmu.native import aligned, parts_of_batch

WINDOW = 32  # frames
_SMALLEST_MEMORY = 256  # d; with 128 there is nothing to gain (measured at H = 256), with 64 much to lose


def pays_off(drive: Tensor, h: Tensor, m: Tensor) -> bool:
    """Whether this form is the faster one for drive (B, T, ..), h (B, H) and the memory m (B, d).

    Its matrices take as long as some frames do. The other form has nothing but its loop to share between threads, and
    shares it better.
    """
    batch, frames, _ = drive.shape
    if drive.device.type != "cpu" or m.shape[1] < _SMALLEST_MEMORY or frames < 2 * WINDOW:
        return False
    return not is_compiled(drive) or parts_of_batch(frames, batch, h.shape[1] + m.shape[1]) == 1


class _Matrices:
    """G of the top of the file; the other matrices transposed, because states are rows."""

    def __init__(self, W_h: Tensor, W_m: Tensor, e_h: Tensor, e_m: Tensor, A: Tensor, B: Tensor):
        hidden_size = len(W_h)
        self.A, self.A_transposed = aligned(A), aligned(A.T)
        impulse = B.new_zeros(WINDOW, 1, len(A))
        impulse[0] = B.T
        run_frames(impulse, self.A_transposed, 0)
        self.impulse = impulse[:, 0]  # K.T, (C, d)
        self.gain = W_m @ B  # how u[t] reaches p[t], (H, 1)
        self.from_memory = torch.cat([W_m @ A + self.gain @ e_m, e_m]).T.contiguous()  # [M; e_m].T, (d, H + 1)
        self.G = aligned(A.new_zeros(hidden_size + WINDOW, hidden_size + WINDOW))
        self.G[:hidden_size, :hidden_size] = W_h + self.gain @ e_h
        self.G[hidden_size, :hidden_size] = e_h[0]
        self.G[: hidden_size + 1, hidden_size:] = (self.impulse @ self.from_memory).T
        self.G[hidden_size + 1 :, hidden_size:-1] = torch.eye(WINDOW - 1, dtype=A.dtype, device=A.device)


def _run_frames(matrices: _Matrices, transition: Tensor, drive: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """All frames of sequences: z (T+1, B, n) and m (T+1, B, d), from the initial state on."""
    batch, frames, _ = drive.shape
    hidden_size = h.shape[1]
    states = drive.new_empty(frames + 1, batch, len(transition))
    memory = drive.new_empty(frames + 1, batch, m.shape[1])
    states[0, :, :hidden_size], memory[0], memory[1:] = h, m, 0
    drive = drive.transpose(0, 1)
    states[1:, :, : hidden_size + 1] = drive
    states[..., hidden_size + 1 :] = 0
    states[1:, :, :hidden_size].addcmul_(drive[..., hidden_size:], matrices.gain.T)

    for start in range(0, frames, WINDOW):
        end = min(start + WINDOW, frames)
        run_frames(memory[start : end + 1], matrices.A_transposed, 0)
        driven = states[start + 1 : end + 1].flatten(0, 1)
        driven[:, : hidden_size + 1].addmm_(memory[start:end].flatten(0, 1), matrices.from_memory)
        of_window = states[start : end + 1]
        of_window[1].addmm_(of_window[0, :, :hidden_size], transition[:hidden_size])  # no u before the window
        of_window[1, :, :hidden_size].tanh_()
        run_frames(of_window[1:], transition, hidden_size)
        memory[start + 1 : end + 1].flatten(0, 1).addmm_(driven[:, hidden_size:], matrices.impulse)
    return states, memory


def _run_frames_backward(
    matrices: _Matrices, W_m: Tensor, e_m: Tensor, grads: Tensor, states: Tensor, grad_memory: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn grads (T+1, B, n), the outer gradient of z, in place into that of [p; q] of each frame.

    grad_memory (B, d) is the outer gradient of the memory after frame ends (B,) of each sequence.

    Returns: the gradient of u[t], (T, B, 1), and of the initial memory, (B, d).
    """
    frames, batch = len(grads) - 1, grads.shape[1]
    hidden_size = W_m.shape[0]
    every = torch.arange(batch)
    grads[ends, every, hidden_size:] += grad_memory @ matrices.impulse.T
    grad_u = grads.new_empty(frames, batch, 1)
    carried = torch.zeros_like(grad_memory)
    for start in reversed(range(0, frames, WINDOW)):
        end = min(start + WINDOW, frames)
        of_window = grads[start + 1 : end + 1]
        grad_p, outputs = of_window[..., :hidden_size], states[start + 1 : end + 1, :, :hidden_size]
        of_window[-1, :, hidden_size:].addmm_(carried, matrices.impulse.T)
        if end < frames:
            grad_p[-1].addmm_(grads[end + 1], matrices.G[:, :hidden_size])
        run_frames_backward(of_window, outputs, matrices.G)
        # u[t] also reaches p[t], which G has folded away
        torch.add(of_window[..., hidden_size, None], grad_p @ matrices.gain, out=grad_u[start:end])
        # the gradient of A^t m0 in each frame: m[t] reaches p[t] and u[t+1]
        grad_decay = grads.new_zeros(end - start + 1, batch, len(matrices.A))
        grad_decay[1:] = grad_p @ W_m
        grad_decay[:-1] += grad_u[start:end] * e_m
        grad_decay[-1] += carried
        ended = (ends > start) & (ends <= end)
        grad_decay[(ends - start)[ended], every[ended]] += grad_memory[ended]
        run_frames_backward(grad_decay, grad_decay[..., :0], matrices.A)
        carried = grad_decay[0]
    return grad_u, carried + grad_memory * (ends == 0)[:, None]


class WindowedLMU(torch.autograd.Function):
    """The loop over frames with its own gradient; see the top of the file.

    Inputs: drive (B, T, H + 1 or more) = [p_x, u_x, ..] = [W_x x, e_x x, what is not used], then
    W_h, W_m, e_h, e_m, A, B, h, m, lengths.
    Outputs: y (B, T, H), h (B, H), m (B, d).
    """

    @staticmethod
    def forward(ctx, drive, W_h, W_m, e_h, e_m, A, B, h, m, lengths):
        batch, frames, ctx.width = drive.shape
        hidden_size = len(W_h)
        drive = drive[..., : hidden_size + 1]
        matrices = _Matrices(W_h, W_m, e_h, e_m, A, B)
        transition = aligned(matrices.G.T)
        y = drive.new_empty(batch, frames, hidden_size)
        last_h, last_m = torch.empty_like(h), torch.empty_like(m)
        ends = torch.full((batch,), frames) if lengths is None else lengths
        parts = split_batch(drive.transpose(0, 1), len(transition))

        def run(sequences: slice) -> tuple[Tensor, Tensor]:
            states, memory = _run_frames(matrices, transition, drive[sequences], h[sequences], m[sequences])
            y[sequences] = states[1:, :, :hidden_size].transpose(0, 1)
            index = ends[sequences], torch.arange(states.shape[1])
            last_h[sequences], last_m[sequences] = states[index][:, :hidden_size], memory[index]
            return states, memory

        results = run_parts(run, parts, drive.device, len(transition))
        if lengths is not None:
            y.masked_fill_(~valid_frames(lengths, frames)[..., None], 0)
        ctx.matrices, ctx.parts, ctx.masked = matrices, parts, lengths is not None
        ctx.save_for_backward(W_m, e_m, B, ends, *(tensor for result in results for tensor in result))
        return y, last_h, last_m

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_h, grad_m):
        # whoever calls backward() under autocast would otherwise get these products in half precision
        with torch.autocast(grad_y.device.type, enabled=False):
            return WindowedLMU._gradients(ctx, grad_y, grad_h, grad_m)

    @staticmethod
    def _gradients(ctx, grad_y, grad_h, grad_m):
        W_m, e_m, B, ends, *saved = ctx.saved_tensors
        matrices = ctx.matrices
        hidden_size, frames = len(W_m), grad_y.shape[1]
        grad_drive = grad_y.new_empty(*grad_y.shape[:2], ctx.width)
        grad_drive[..., hidden_size + 1 :] = 0
        grad_first_h, grad_first_m = torch.empty_like(grad_h), torch.empty_like(grad_m)

        def run(sequences: slice, states: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
            batch = states.shape[1]
            grads = torch.empty_like(states)
            grads[0], grads[..., hidden_size:] = 0, 0
            grads[1:, :, :hidden_size] = grad_y[sequences].transpose(0, 1)
            if ctx.masked:
                # a padded frame has no gradient, but its state may have overflowed, and 0 x inf is not 0
                after = (torch.arange(frames + 1)[:, None] > ends[sequences])[..., None]
                grads.masked_fill_(after, 0)
                states, memory = states.masked_fill(after, 0), memory.masked_fill(after, 0)
            grads[ends[sequences], torch.arange(batch), :hidden_size] += grad_h[sequences]
            grad_u, grad_first_m[sequences] = _run_frames_backward(
                matrices, W_m, e_m, grads, states, grad_m[sequences], ends[sequences]
            )
            grad_first_h[sequences] = torch.addmm(grads[0, :, :hidden_size], grads[1], matrices.G[:, :hidden_size])
            grad_drive[sequences, :, :hidden_size] = grads[1:, :, :hidden_size].transpose(0, 1)
            grad_drive[sequences, :, hidden_size : hidden_size + 1] = grad_u.transpose(0, 1)
            return grads, grad_u, states, memory

        results = run_parts(run, ctx.parts, grad_y.device, len(matrices.G), saved[::2], saved[1::2])
        of_parts = []
        for grads, grad_u, states, memory in results:
            flat_p, flat_u = grads[1:].flatten(0, 1)[:, :hidden_size].T, grad_u.view(1, -1)
            hidden = states[:-1].flatten(0, 1)[:, :hidden_size]
            before, after = memory[:-1].flatten(0, 1), memory[1:].flatten(0, 1)
            of_parts.append((flat_p @ hidden, flat_p @ after, flat_u @ hidden, flat_u @ before))
        totals = (functools.reduce(torch.add, parts) for parts in zip(*of_parts, strict=True))
        return grad_drive, *totals, None, None, grad_first_h, grad_first_m, None
