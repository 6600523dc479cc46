"""The original LMU (Voelker, Kajic, Eliasmith, NeurIPS 2019) in a form with one matrix product per frame.

B: batch, T: frames, I: input size, H: hidden size, d: memory size (order), n = H + d.

With m[t] put into the equation of h[t] and z = [h; m], a frame is z[t] = [tanh(p); q], [p; q] = drive[t] + G z[t-1]:

    G = [ W_h + W_m B e_h    W_m A' ]      drive[t] = [ W_x + W_m B e_x ] x[t]      A' = A + B e_m
        [ B e_h              A'     ]                 [ B e_x           ]

The drive of all frames is one product before the loop. Going back through time takes one product with G per frame and
yields the gradient of every p and q; all parameter gradients then follow from the textbook equations in two products
over all frames at once. That is a third less work than the gradient of G, and G needs no autograd graph.

On a CPU, the loop is compiled code where that is built (loops.py), and long sequences with a memory of high order take
another form, with a smaller G: windowed.py.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from espnet_lmu.lmu import windowed
from espnet_lmu.lmu.checks import check_counts, check_sequences, check_state
from espnet_lmu.lmu.cuda_graph import BackwardFrames, ForwardFrames, captured
from espnet_lmu.lmu.legendre import LegendreBuffers, LegendreSystem
from espnet_lmu.lmu.loops import is_compiled, one_by_one, run_frames, run_frames_backward, run_parts, split_batch
from espnet_lmu.lmu.naive import valid_frames

ROUTES = ("auto", "persistent")

_NARROW = 256  # columns of the input product; up to so many, others beside them cost what they save


def _run_on_gpu(
    backward: bool, rows: Tensor, hidden_size: int, persistent: torch.dtype | None
) -> Callable[..., None] | None:
    """What runs the frames of rows (T, B, n) in few launches; None where they are to be launched one by one."""
    if one_by_one():
        return None
    if persistent is not None:
        from espnet_lmu.lmu import persistent as kernel

        run = kernel.run_frames_backward if backward else kernel.run_frames
        return functools.partial(run, hidden_size=hidden_size, products=persistent)
    return captured(BackwardFrames if backward else ForwardFrames, rows, hidden_size)


def _run_frames(states: Tensor, transition: Tensor, hidden_size: int, persistent: torch.dtype | None) -> None:
    """Fill states (T+1, B, n) in place: row 0 holds the initial state, row t + 1 the drive of frame t."""
    if run_all := _run_on_gpu(False, states, hidden_size, persistent):
        run_all(states, transition)
        return

    if is_compiled(states):
        run_frames(states, transition, hidden_size)
        return

    def run(sequences: slice) -> None:
        run_frames(states[:, sequences], transition, hidden_size)

    n = states.shape[2]
    run_parts(run, split_batch(states, n), states.device, n)


def _run_frames_backward(
    grads: Tensor, states: Tensor, transition: Tensor, hidden_size: int, persistent: torch.dtype | None
) -> None:
    """Turn grads (T, B, n), the outer gradient of z[t], in place into the gradient of [p; q] of each frame."""
    outputs = states[1:, :, :hidden_size]
    if run_all := _run_on_gpu(True, grads, hidden_size, persistent):
        run_all(grads, torch.addcmul(grads.new_ones(()), outputs, outputs, value=-1), transition)
        return

    if is_compiled(grads):
        run_frames_backward(grads, outputs, transition)
        return

    def run(sequences: slice) -> None:
        run_frames_backward(grads[:, sequences], outputs[:, sequences], transition)

    n = grads.shape[2]
    run_parts(run, split_batch(grads, n), grads.device, n)


def folded_matrices(W_h: Tensor, W_m: Tensor, e_h: Tensor, e_m: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """G (n, n) of the top of the file, and how u[t] reaches [p; q] (n, 1)."""
    feedback = A + B @ e_m
    gain = W_m @ B
    G = torch.cat([torch.cat([W_h + gain @ e_h, W_m @ feedback], 1), torch.cat([B @ e_h, feedback], 1)])
    return G, torch.cat([gain, B])


class _FusedLMU(torch.autograd.Function):
    """The loop over frames with its own gradient; see the top of the file.

    Inputs: drive (B, T, H + 1 or more) = [p_x, u_x, ..] = [W_x x, e_x x, what is not used], then
    W_h, W_m, e_h, e_m, A, B, h, m, lengths, persistent.
    Outputs: y (B, T, H), h (B, H), m (B, d).
    """

    @staticmethod
    def forward(ctx, drive, W_h, W_m, e_h, e_m, A, B, h, m, lengths, persistent):
        batch, frames, ctx.width = drive.shape
        hidden_size = W_h.shape[0]
        drive = drive[..., : hidden_size + 1]
        G, injection = folded_matrices(W_h, W_m, e_h, e_m, A, B)
        gain = injection[:hidden_size]  # how u[t] reaches p[t]

        states = drive.new_empty(frames + 1, batch, G.shape[0])
        states[0, :, :hidden_size], states[0, :, hidden_size:] = h, m
        drive = drive.transpose(0, 1)
        torch.mul(drive[..., hidden_size:], injection.T[0], out=states[1:])
        states[1:, :, :hidden_size] += drive[..., :hidden_size]
        # the product with a transposed matrix is slower, and the loop repeats it T times
        _run_frames(states, G.T.contiguous(), hidden_size, persistent)

        if lengths is None:
            y, last = states[1:, :, :hidden_size].transpose(0, 1).contiguous(), states[-1]
        else:
            y = states[1:, :, :hidden_size].transpose(0, 1).clone(memory_format=torch.contiguous_format)
            y.masked_fill_(~valid_frames(lengths, frames)[..., None], 0)
            last = states[lengths, torch.arange(batch, device=lengths.device)]
        ctx.save_for_backward(states, G, gain, B, lengths)
        ctx.persistent = persistent
        return y, last[:, :hidden_size].clone(), last[:, hidden_size:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_h, grad_m):
        # whoever calls backward() under autocast would otherwise get these products in half precision
        with torch.autocast(grad_y.device.type, enabled=False):
            return _FusedLMU._gradients(ctx, grad_y, grad_h, grad_m)

    @staticmethod
    def _gradients(ctx, grad_y, grad_h, grad_m):
        states, G, gain, B, lengths = ctx.saved_tensors
        frames, batch, n = states.shape[0] - 1, states.shape[1], states.shape[2]
        hidden_size = len(gain)
        grad_last = torch.cat([grad_h, grad_m], dim=1)

        # row t + 1 is the gradient of z[t]; row 0 that of the initial state
        grads = grad_y.new_zeros(frames + 1, batch, n)
        grads[1:, :, :hidden_size] = grad_y.transpose(0, 1)
        if lengths is None:
            grads[-1] += grad_last
        else:
            grads[1:].masked_fill_(~valid_frames(lengths, frames).T[..., None], 0)
            grads[lengths, torch.arange(batch, device=lengths.device)] += grad_last
            # a padded frame has no gradient, but its state may have overflowed, and 0 x inf is not 0
            after = torch.arange(frames + 1, device=lengths.device)[:, None] > lengths
            states = states.masked_fill(after[..., None], 0)
        _run_frames_backward(grads[1:], states, G, hidden_size, ctx.persistent)
        grad_initial = torch.addmm(grads[0], grads[1], G)

        grad_p = grads[1:, :, :hidden_size]
        # m[t] also reaches p[t], which G has folded away; u[t] reaches m[t] through B
        grad_u = grads[1:, :, hidden_size:] @ B + grad_p @ gain
        flat_p, flat_u = grad_p.reshape(-1, hidden_size), grad_u.view(-1, 1)
        before = states[:-1].view(-1, n)
        grad_W_h = flat_p.T @ before[:, :hidden_size]
        grad_W_m = flat_p.T @ states[1:, :, hidden_size:].reshape(-1, n - hidden_size)
        grad_e = flat_u.T @ before
        grad_drive = grads.new_empty(batch, frames, ctx.width)
        grad_drive[..., :hidden_size] = grad_p.transpose(0, 1)
        grad_drive[..., hidden_size : hidden_size + 1] = grad_u.transpose(0, 1)
        grad_drive[..., hidden_size + 1 :] = 0
        return (
            grad_drive,
            grad_W_h,
            grad_W_m,
            # contiguous, as distributed training wants them
            grad_e[:, :hidden_size].contiguous(),
            grad_e[:, hidden_size:].contiguous(),
            None,
            None,
            grad_initial[:, :hidden_size],
            grad_initial[:, hidden_size:],
            None,
            None,
        )


def fused_lmu(
    x: Tensor,
    e_x: Tensor,
    e_h: Tensor,
    e_m: Tensor,
    W_x: Tensor,
    W_h: Tensor,
    W_m: Tensor,
    A: Tensor,
    B: Tensor,
    h: Tensor,
    m: Tensor,
    lengths: Tensor | None = None,
    persistent: torch.dtype | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same as `naive.naive_lmu`, with one matrix product per frame; A and B get no gradient.

    persistent: None, or to run the frames as one kernel (see persistent.py), the type of its products with h.
    """
    rows = len(W_x) + 1
    # A CPU without AVX-512 takes half as long again for 513 columns as for 528, which end on a vector's boundary.
    padding = -rows % 16 if rows > _NARROW else 0
    drive = F.linear(x, torch.cat([W_x, e_x, W_x.new_zeros(padding, W_x.shape[1])]))
    return fused_recurrence(drive, e_h, e_m, W_h, W_m, A, B, h, m, lengths, persistent)


def fused_recurrence(
    drive: Tensor,
    e_h: Tensor,
    e_m: Tensor,
    W_h: Tensor,
    W_m: Tensor,
    A: Tensor,
    B: Tensor,
    h: Tensor,
    m: Tensor,
    lengths: Tensor | None = None,
    persistent: torch.dtype | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`fused_lmu` after its input products.

    drive: (B, T, H + 1 or more), what x[t] adds to the argument of tanh and to u; further columns are not used.
    """
    values = (drive, W_h, W_m, e_h, e_m, A, B, h, m, lengths)
    if windowed.pays_off(drive, h, m):
        y, h, m = windowed.WindowedLMU.apply(*values)
    else:
        y, h, m = _FusedLMU.apply(*values, persistent)
    return y, (h, m)


def computing_dtype(parameter: Tensor) -> torch.dtype:
    """The type a recurrence runs in: the parameters' own, but never below float32."""
    return torch.promote_types(parameter.dtype, torch.float32)


def half_precision(x: Tensor) -> torch.dtype:
    """The type in which products that need no more than half precision run: autocast's, else that of x."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype in (torch.bfloat16, torch.float16) else torch.float32


class LMU(LegendreBuffers):
    """The original Legendre Memory Unit layer.

        u[t] = e_x x[t] + e_h h[t-1] + e_m m[t-1]
        m[t] = A m[t-1] + B u[t]
        h[t] = tanh(W_x x[t] + W_h h[t-1] + W_m m[t])

    Initialised as in the paper: e_x and e_h LeCun uniform, e_m zero, W_x, W_h and W_m Xavier normal. The recurrence
    runs in float32 at least, also under autocast; y has the type of x and the state stays in the type it was
    computed in. On the CPU, a memory that decays through long silence may reach denormal numbers, which are slow on
    some processors: the compiled loop flushes them to zero, elsewhere `torch.set_flush_denormal(True)` does.

    Args:
        input_size: I.
        hidden_size: H.
        memory_size: the memory's order d.
        theta: window of the memory in frames.
        discretizer: "zoh" or "euler".
        route: "auto", or "persistent", a kernel for a GPU that runs all frames in one launch and needs Triton. Under
            autocast or for x of half precision it computes its products with h, and no others, in half precision.

    Example:
        >>> layer = LMU(80, 256, 128, theta=100)
        >>> y, state = layer(torch.randn(4, 50, 80))
        >>> y, state = layer(torch.randn(4, 50, 80), state=state)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        theta: float,
        discretizer: str = "zoh",
        route: str = "auto",
    ) -> None:
        super().__init__(LegendreSystem(memory_size, theta, discretizer))
        check_counts(input_size=input_size, hidden_size=hidden_size)
        if route not in ROUTES:
            raise ValueError(f"route must be one of {', '.join(ROUTES)}, not {route!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.memory_size = memory_size
        self.route = route
        self.e_x = nn.Parameter(torch.empty(1, input_size))
        self.e_h = nn.Parameter(torch.empty(1, hidden_size))
        self.e_m = nn.Parameter(torch.empty(1, memory_size))
        self.W_x = nn.Parameter(torch.empty(hidden_size, input_size))
        self.W_h = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.W_m = nn.Parameter(torch.empty(hidden_size, memory_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as in the paper."""
        for encoder in (self.e_x, self.e_h):
            bound = math.sqrt(3 / encoder.shape[1])
            nn.init.uniform_(encoder, -bound, bound)
        nn.init.zeros_(self.e_m)
        for kernel in (self.W_x, self.W_h, self.W_m):
            nn.init.xavier_normal_(kernel)

    def extra_repr(self) -> str:
        system = self.system
        return f"{self.input_size}, {self.hidden_size}, {system.order}, theta={system.theta:g}, {system.discretizer}"

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layer over a batch of sequences.

        Args:
            x: (B, T, input_size).
            lengths: (B,) valid frames of each sequence, None for all.
            state: h (B, hidden_size) and m (B, memory_size) before the first frame, None for zero.

        Returns: y (B, T, hidden_size), zero after a sequence's length, and the state after its last valid frame.
        """
        lengths = check_sequences(x, self.input_size, lengths)
        dtype = computing_dtype(self.W_x)
        persistent = half_precision(x) if self.route == "persistent" else None
        if state is None:
            h, m = x.new_zeros(len(x), self.hidden_size), x.new_zeros(len(x), self.memory_size)
        else:
            check_state(state, (len(x), self.hidden_size), (len(x), self.memory_size))
            h, m = state
        constants = (self.e_x, self.e_h, self.e_m, self.W_x, self.W_h, self.W_m, self.A, self.B, h, m)
        valid = valid_frames(lengths, x.shape[1])
        inputs = x if valid is None else x.masked_fill(~valid[..., None], 0)
        with torch.autocast(x.device.type, enabled=False):
            y, state = fused_lmu(inputs.to(dtype), *(c.to(dtype) for c in constants), lengths, persistent)
        return y.to(x.dtype), state
