"""The general LMU layer: every connection optional, with the semantics of keras-lmu, the reference implementation.

B: batch, T: frames, I: input size, C: memory channels (memory_d), d: order, H: hidden size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lmu.lmu.checks import check_counts, check_sequences, check_state, check_switches
from espnet_lmu.lmu.legendre import LegendreBuffers, LegendreSystem, continuous_system, discretize
from espnet_lmu.lmu.memory import MemoryOperators, linear_memory, operators_of
from espnet_lmu.lmu.naive import valid_frames
from espnet_lmu.lmu.original import computing_dtype, fused_recurrence
from espnet_lmu.lmu.parallel import check_route, choose_route, make_activation

HIDDEN_CELLS = ("none", "linear", "recurrent")

_WEIGHTS = ("W_u", "W_uh", "W_um", "W_m", "W_x", "W_h", "b_u", "b")


class GeneralLMU(LegendreBuffers):
    """A Legendre Memory Unit layer whose connections are chosen one by one.

        u[t] = W_u x[t] (+ W_uh h[t-1]) (+ W_um m[t-1]) (+ b_u)       C channels; m is flattened to C d
        m[t] = A m[t-1] + B u[t]                                      in each channel
        none:       y[t] = [m[t] (, x[t])]
        linear:     y[t] = h[t] = f(W_m m[t] (+ W_x x[t]) (+ b))
        recurrent:  y[t] = h[t] = f(W_m m[t] (+ W_x x[t]) + W_h h[t-1] (+ b))

    With neither hidden_to_memory nor memory_to_memory the memory is a linear filter, and all frames run at once.
    Otherwise the layer steps through the frames; a single channel with tanh and a fixed theta does so in the fused form
    of `original.py`. The recurrence runs in float32 at least, also under autocast.

    Initialised like keras-lmu: Xavier uniform, with the weights that read one concatenated input drawn together;
    W_um and W_h orthogonal; biases zero.

    Args:
        input_size: I.
        hidden_size: H; 0 for hidden_cell "none".
        memory_size: the memory's order d.
        theta: window of the memory in frames.
        memory_d: channels C of the memory.
        hidden_cell: "none" (the memory is the output), "linear" or "recurrent".
        activation: f, one of "linear", "tanh", "relu", "gelu", "silu".
        trainable_theta: learn 1 / theta, from the given theta on; the discretisation is part of the graph.
        hidden_to_memory: add W_uh, the path from the last output to the memory's input.
        memory_to_memory: add W_um, the path from the last memory to the memory's input.
        input_to_hidden: add the path from the input past the memory.
        discretizer: "zoh", exact, or "euler", cheaper to learn theta with, stable for theta of about d^2 / 3 or more.
        bias: whether b_u exists.
        hidden_bias: whether b exists.
        route: "step", and without feedback also "chunk", "fft", "conv" (see memory.py); "auto" takes the fastest.
        chunk_size: frames per chunk of the chunk route, None for a size that suits the order.
        truncate_ir: the conv route drops the end of the impulse response up to this relative error.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        theta: float,
        memory_d: int = 1,
        hidden_cell: str = "linear",
        activation: str = "tanh",
        trainable_theta: bool = False,
        hidden_to_memory: bool = False,
        memory_to_memory: bool = False,
        input_to_hidden: bool = False,
        discretizer: str = "zoh",
        bias: bool = False,
        hidden_bias: bool = True,
        route: str = "auto",
        chunk_size: int | None = None,
        truncate_ir: float = 1e-4,
    ) -> None:
        super().__init__(LegendreSystem(memory_size, theta, discretizer))
        check_route(route, chunk_size)
        if hidden_cell not in HIDDEN_CELLS:
            raise ValueError(f"hidden_cell must be one of {', '.join(HIDDEN_CELLS)}, not {hidden_cell!r}")
        check_counts(input_size=input_size, memory_d=memory_d)
        if hidden_size != 0:
            check_counts(hidden_size=hidden_size)
        check_switches(
            trainable_theta=trainable_theta,
            hidden_to_memory=hidden_to_memory,
            memory_to_memory=memory_to_memory,
            input_to_hidden=input_to_hidden,
            bias=bias,
            hidden_bias=hidden_bias,
        )
        if (hidden_size == 0) != (hidden_cell == "none"):
            raise ValueError(f"hidden_cell {hidden_cell!r} does not go with hidden_size {hidden_size}")
        if hidden_to_memory and hidden_cell == "none":
            raise ValueError("hidden_to_memory needs a hidden_cell")
        if not isinstance(truncate_ir, int | float) or not 0 <= truncate_ir < 1:
            raise ValueError(f"truncate_ir must be a relative error, at least 0 and below 1, not {truncate_ir!r}")
        if (hidden_to_memory or memory_to_memory) and route not in ("auto", "step"):
            raise ValueError(f"route {route!r} needs a memory without feedback")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.memory_size = memory_size
        self.memory_d = memory_d
        self.hidden_cell = hidden_cell
        self.input_to_hidden = input_to_hidden
        self.route = route
        self.chunk_size = chunk_size
        self.truncate_ir = truncate_ir
        self.activation = make_activation(activation)
        flat = memory_d * memory_size
        self.output_size = hidden_size or flat + (input_size if input_to_hidden else 0)

        def weight(rows: int, columns: int, wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(rows, columns)) if wanted else None

        hidden = hidden_cell != "none"
        self.W_u = nn.Parameter(torch.empty(memory_d, input_size))
        self.W_uh = weight(memory_d, hidden_size, hidden_to_memory)
        self.W_um = weight(memory_d, flat, memory_to_memory)
        self.W_m = weight(hidden_size, flat, hidden)
        self.W_x = weight(hidden_size, input_size, hidden and input_to_hidden)
        self.W_h = weight(hidden_size, hidden_size, hidden_cell == "recurrent")
        self.b_u = nn.Parameter(torch.empty(memory_d)) if bias else None
        self.b = nn.Parameter(torch.empty(hidden_size)) if hidden and hidden_bias else None
        self.theta_inv = nn.Parameter(torch.empty(())) if trainable_theta else None
        if trainable_theta:
            del self.A, self.B  # they follow theta_inv
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, set the biases to zero and theta to where it began."""
        for group in ((self.W_u, self.W_uh), (self.W_m, self.W_x)):
            weights = [w for w in group if w is not None]
            if weights:
                bound = math.sqrt(6 / (len(weights[0]) + sum(w.shape[1] for w in weights)))
                for w in weights:
                    nn.init.uniform_(w, -bound, bound)
        for w in (self.W_um, self.W_h):
            if w is not None:
                nn.init.orthogonal_(w)
        for b in (self.b_u, self.b):
            if b is not None:
                nn.init.zeros_(b)
        if self.theta_inv is not None:
            nn.init.constant_(self.theta_inv, 1 / self.system.theta)

    @property
    def theta(self) -> float:
        """The window in frames; the learnt one where theta is trained, infinite where 1 / theta came to zero."""
        if self.theta_inv is None or self.theta_inv.is_meta:
            return self.system.theta
        theta_inv = self.theta_inv.item()
        return 1 / theta_inv if theta_inv > 0 else math.inf

    def extra_repr(self) -> str:
        system = self.system
        return (
            f"{self.input_size}, {self.hidden_size}, {system.order}, theta={self.theta:g}, "
            f"memory_d={self.memory_d}, hidden_cell={self.hidden_cell}, {system.discretizer}"
        )

    def _operators(self) -> MemoryOperators:
        if self.theta_inv is None:
            return operators_of(self.system)
        # a step of the optimiser may take theta_inv below 0: it then counts as 0, and still learns
        theta_inv = self.theta_inv + (self.theta_inv.clamp(min=0) - self.theta_inv).detach()
        a, b = (part.to(theta_inv.device) * theta_inv.double() for part in continuous_system(self.memory_size))
        return MemoryOperators(*discretize(a, b, self.system.discretizer))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layer over a batch of sequences.

        Args:
            x: (B, T, input_size).
            lengths: (B,) valid frames of each sequence, None for all.
            state: h (B, hidden_size), the last output, and m (B, memory_d, memory_size), None for zero.

        Returns: y (B, T, output_size), zero after a sequence's length, and the state after its last valid frame.
        """
        lengths = check_sequences(x, self.input_size, lengths)
        batch, frames, _ = x.shape
        dtype = computing_dtype(self.W_u)
        valid = valid_frames(lengths, frames)
        inputs = x.to(dtype) if valid is None else x.to(dtype).masked_fill(~valid[..., None], 0)
        if state is None:
            h = inputs.new_zeros(batch, self.hidden_size)
            m = inputs.new_zeros(batch, self.memory_d, self.memory_size)
        else:
            check_state(state, (batch, self.hidden_size), (batch, self.memory_d, self.memory_size))
            h, m = (part.to(dtype) for part in state)
        feedback = self.W_uh is not None or self.W_um is not None
        fusible = self.memory_d == 1 and isinstance(self.activation, nn.Tanh) and self.theta_inv is None
        with torch.autocast(x.device.type, enabled=False):
            # Weights by name, in the type that everything is computed in; as attributes, which those are too that
            # torch's parametrizations, pruning or replicas for several GPUs put in the place of parameters.
            weights = {name: getattr(self, name) for name in _WEIGHTS}
            p = {name: weight.to(dtype) for name, weight in weights.items() if weight is not None}
            u = F.linear(inputs, p["W_u"], p.get("b_u"))
            if not feedback:
                memory = None if state is None else m
                y, state = self._run_parallel(p, inputs, u, h, memory, lengths, valid)
            elif self.route == "auto" and fusible and self.hidden_cell != "none":
                y, state = self._run_fused(p, inputs, u, h, m, lengths)
            else:
                y, state = self._run_steps(p, inputs, u, h, m, valid)
        if valid is not None:
            y = y.masked_fill(~valid[..., None], 0)
        return y.to(x.dtype), state

    def _hidden_drive(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        """What the input and the bias add to the hidden cell in each frame, (B, T, H) or broadcast to it."""
        if "W_x" in p:
            return F.linear(x, p["W_x"], p.get("b"))
        return p.get("b", x.new_zeros(self.hidden_size)).expand(*x.shape[:2], -1)

    def _run_parallel(self, p, x, u, h, m, lengths, valid):
        """No feedback into the memory: the memory of all frames at once, then the hidden cell."""
        if valid is not None:
            u = u.masked_fill(~valid[..., None], 0)
        route = choose_route(self.route, x.shape[1])
        memory, m = linear_memory(u, self._operators(), m, lengths, route, self.chunk_size, self.truncate_ir)
        memory = memory.flatten(2)
        if self.hidden_cell == "none":
            return (torch.cat([memory, x], dim=-1) if self.input_to_hidden else memory), (h, m)
        drive = self._hidden_drive(p, x) + F.linear(memory, p["W_m"])
        if self.hidden_cell == "recurrent":
            outputs = []
            for t, frame in enumerate(drive.unbind(1)):
                h_next = self.activation(torch.addmm(frame, h, p["W_h"].T))
                h = h_next if valid is None else torch.where(valid[:, t, None], h_next, h)
                outputs.append(h_next)
            return torch.stack(outputs, dim=1), (h, m)
        y = self.activation(drive)
        if lengths is None:
            return y, (y[:, -1], m)
        last = y[torch.arange(len(y), device=y.device), (lengths - 1).clamp(min=0)]
        return y, (torch.where(lengths[:, None] > 0, last, h), m)

    def _run_fused(self, p, x, u, h, m, lengths):
        """Feedback in the form of the original LMU: absent connections are zero."""
        drive = torch.cat([self._hidden_drive(p, x), u], dim=-1)
        e_h = p.get("W_uh", x.new_zeros(1, self.hidden_size))
        e_m = p.get("W_um", x.new_zeros(1, self.memory_size))
        W_h = p.get("W_h", x.new_zeros(self.hidden_size, self.hidden_size))
        A, B = operators_of(self.system).matrices(x)
        y, (h, m) = fused_recurrence(drive, e_h, e_m, W_h, p["W_m"], A, B, h, m.squeeze(1), lengths)
        return y, (h, m.unsqueeze(1))

    def _run_steps(self, p, x, u, h, m, valid):
        """Any feedback, one frame at a time: the reference of this file."""
        A, B = self._operators().matrices(x)
        drive = None if self.hidden_cell == "none" else self._hidden_drive(p, x)
        outputs = []
        for t in range(x.shape[1]):
            u_t = u[:, t]
            if "W_uh" in p:
                u_t = u_t + h @ p["W_uh"].T
            if "W_um" in p:
                u_t = u_t + m.flatten(1) @ p["W_um"].T
            m_next, h_next = m @ A.T + u_t[..., None] * B.T, h
            if drive is None:
                output = torch.cat([m_next.flatten(1), x[:, t]], -1) if self.input_to_hidden else m_next.flatten(1)
            else:
                p_t = drive[:, t] + m_next.flatten(1) @ p["W_m"].T
                if "W_h" in p:
                    p_t = p_t + h @ p["W_h"].T
                output = h_next = self.activation(p_t)
            if valid is not None:
                alive = valid[:, t, None]
                h_next, m_next = torch.where(alive, h_next, h), torch.where(alive[..., None], m_next, m)
            h, m = h_next, m_next
            outputs.append(output)
        return torch.stack(outputs, dim=1), (h, m)
