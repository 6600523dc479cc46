"""The parallel LMU (Chilkuri, Eliasmith, ICML 2021): no feedback into the memory, so all frames run at once.

B: batch, T: frames, C: memory channels (memory_d), d: order, H: hidden size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.lmu.checks import check_counts, check_sequences, check_state, check_switches
from espnet_lmu.lmu.legendre import LegendreBuffers, LegendreSystem
from espnet_lmu.lmu.memory import ROUTES, chunk_frames, folding_saves_work, linear_memory, linear_readout, operators_of
from espnet_lmu.lmu.naive import valid_frames
from espnet_lmu.lmu.original import computing_dtype

ACTIVATIONS = {"linear": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def make_activation(name: str) -> nn.Module:
    """The activation of that name; ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}")
    return ACTIVATIONS[name]()


def check_route(route: str, chunk_size: int | None) -> None:
    """Raise ValueError for an unknown route or an impossible chunk."""
    if route not in ("auto", *ROUTES):
        raise ValueError(f"route must be one of auto, {', '.join(ROUTES)}, not {route!r}")
    if chunk_size is not None:
        check_counts(chunk_size=chunk_size)


def choose_route(route: str, frames: int) -> str:
    """The route to take: the one asked for, or the fastest as measured on a CPU.

    Chunks and Fourier transforms take the same time within 10 % for orders 8 to 256 and 20 to 1,500 frames, the
    steps up to twice as long; chunks are plain matrix products, exact in any type, and give the final state for free.
    """
    if route != "auto":
        return route
    return "step" if frames <= 2 else "chunk"


class ParallelLMU(LegendreBuffers):
    """The parallel Legendre Memory Unit layer.

        u[t] = W_u x[t] + b_u                       C channels
        m[t, c] = A m[t-1, c] + B u[t, c]           d coefficients each
        y[t] = f(W_x x[t] + W_m m[t] + b)

    The memory is computed in float32 at least, also under autocast. Weights are Xavier uniform, biases zero.

    Args:
        input_size: I.
        hidden_size: H.
        memory_size: the memory's order d.
        theta: window of the memory in frames.
        memory_d: channels C of the memory.
        discretizer: "zoh" or "euler".
        activation: f, one of "linear", "tanh", "relu", "gelu", "silu".
        bias: whether b_u and b exist.
        route: "step", "chunk", "fft", "conv" (see memory.py; nothing is truncated), or "auto", the fastest.
        chunk_size: frames per chunk of the chunk route, None for a size that suits the order.

    Example:
        >>> layer = ParallelLMU(80, 256, 16, theta=100, memory_d=8)
        >>> y, state = layer(torch.randn(4, 50, 80))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        theta: float,
        memory_d: int = 1,
        discretizer: str = "zoh",
        activation: str = "tanh",
        bias: bool = True,
        route: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(LegendreSystem(memory_size, theta, discretizer))
        check_route(route, chunk_size)
        check_counts(input_size=input_size, hidden_size=hidden_size, memory_d=memory_d)
        check_switches(bias=bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.memory_size = memory_size
        self.memory_d = memory_d
        self.route = route
        self.chunk_size = chunk_size
        self.activation = make_activation(activation)
        self.W_u = nn.Parameter(torch.empty(memory_d, input_size))
        self.W_x = nn.Parameter(torch.empty(hidden_size, input_size))
        self.W_m = nn.Parameter(torch.empty(hidden_size, memory_d * memory_size))
        self.b_u = nn.Parameter(torch.empty(memory_d)) if bias else None
        self.b = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and set the biases to zero."""
        for weight in (self.W_u, self.W_x, self.W_m):
            nn.init.xavier_uniform_(weight)
        for bias in (self.b_u, self.b):
            if bias is not None:
                nn.init.zeros_(bias)

    def extra_repr(self) -> str:
        system = self.system
        return (
            f"{self.input_size}, {self.hidden_size}, {system.order}, theta={system.theta:g}, "
            f"memory_d={self.memory_d}, {system.discretizer}, route={self.route}"
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer over a batch of sequences.

        Args:
            x: (B, T, input_size).
            lengths: (B,) valid frames of each sequence, None for all.
            state: (B, memory_d, memory_size), the memory before the first frame, None for zero.

        Returns: y (B, T, hidden_size), zero after a sequence's length, and the state after its last valid frame.
        """
        lengths = check_sequences(x, self.input_size, lengths)
        batch, frames, _ = x.shape
        if state is not None:
            check_state([state], (batch, self.memory_d, self.memory_size))
        route = choose_route(self.route, frames)
        dtype, given = computing_dtype(self.W_u), x.dtype
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.W_u.dtype)
        valid = valid_frames(lengths, frames)
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0)
        u = F.linear(x, self.W_u, self.b_u).to(dtype)
        if valid is not None:
            u = u.masked_fill(~valid[..., None], 0)
        state = None if state is None else state.to(dtype)
        operators = operators_of(self.system)
        sizes = (self.memory_d, self.memory_size, self.hidden_size)
        with torch.autocast(x.device.type, enabled=False):
            size = chunk_frames(self.chunk_size, frames, self.memory_size)
            if folding_saves_work(frames, batch, *sizes, route, size):
                weight = self.W_m.to(dtype).view(self.hidden_size, self.memory_d, self.memory_size)
                readout, state = linear_readout(u, weight, operators, state, lengths, route, size)
            else:
                memory, state = linear_memory(u, operators, state, lengths, route, size)
                readout = None
        if readout is None:
            readout = F.linear(memory.flatten(2).to(x.dtype), self.W_m)
        y = self.activation(F.linear(x, self.W_x, self.b) + readout).to(given)
        return (y if valid is None else y.masked_fill(~valid[..., None], 0)), state
