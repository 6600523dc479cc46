"""The Legendre delay system: a linear memory that holds the last theta frames of its input.

Source: Voelker, Kajic, Eliasmith, "Legendre Memory Units", NeurIPS 2019, equations 1 to 5. The state m (d,), d being
the order, follows dm/dt = A m + B u and stores the window u(t - theta) .. u(t) as d coefficients of shifted Legendre
polynomials. Time is counted in frames, so one step of the discrete system is one frame.

In the norm sum_i m_i^2 / (2 i + 1) the continuous system never grows, and zero-order hold keeps that property exactly.
This is why high orders stay stable over any number of steps, while Euler's method needs theta of about a third of the
order squared.
"""

import functools
import math

import torch
from torch import Tensor, nn

from espnet_lmu.lmu.checks import check_counts

DISCRETIZERS = ("zoh", "euler")


def continuous_system(order: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The continuous Legendre delay system for a window of one frame; divide both by theta for a window of theta.

    Returns: A (order, order) and B (order, 1) of equations 1 and 2.
    """
    i = torch.arange(order, dtype=torch.float64)[:, None]
    j = i.T
    parity = 1 - 2 * ((i - j + 1).abs() % 2)
    a = (2 * i + 1) * torch.where(i < j, -torch.ones_like(parity), parity)
    b = (2 * i + 1) * (1 - 2 * (i % 2))
    return a.to(dtype), b.to(dtype)


def discretize(a: Tensor, b: Tensor, discretizer: str) -> tuple[Tensor, Tensor]:
    """Turn a continuous system into one step of one frame; differentiable.

    Args:
        a: (order, order) continuous transition, per frame.
        b: (order, 1) continuous input, per frame.
        discretizer: "zoh" (zero-order hold: exact for an input that is constant within a frame) or "euler".

    Returns: A (order, order) and B (order, 1) of m[t] = A m[t-1] + B u[t].
    """
    if discretizer not in DISCRETIZERS:
        raise ValueError(f"discretizer must be one of {', '.join(DISCRETIZERS)}, not {discretizer!r}")
    if discretizer == "euler":
        return a + torch.eye(a.shape[0], dtype=a.dtype, device=a.device), b
    # exp([[a, b], [0, 0]]) = [[A, B], [0, 1]]; needs no inverse of a
    exponential = torch.linalg.matrix_exp(nn.functional.pad(torch.cat([a, b], dim=1), (0, 0, 0, 1)))
    return exponential[:-1, :-1], exponential[:-1, -1:]


def check_order_and_theta(order: int, theta: float) -> None:
    """Raise ValueError for an order or a window length that no system has."""
    check_counts(**{"the memory's order": order})
    number = isinstance(theta, int | float) and not isinstance(theta, bool)
    if not number or not math.isfinite(theta) or theta < 1:
        # a fraction of a frame is most often a time in seconds
        raise ValueError(f"theta must be a finite number of frames, at least 1, not {theta!r}")


def _stays_bounded(a: Tensor) -> bool:
    """Whether the step a (order, order), rounded to float32, holds its state within 100 times its size for 2^17 frames.

    Eigenvalues do not tell: from order 64 on, a step whose eigenvalues all lie inside the unit circle can first grow a
    state by many orders of magnitude, and float32 turns that into lasting growth.
    """
    norm = (2 * torch.arange(len(a), dtype=a.dtype) + 1).sqrt()
    power = a.float().double() / norm[:, None] * norm
    for _ in range(18):
        if not torch.linalg.norm(power) <= 100 * math.sqrt(len(a)):
            return False
        power = power @ power
    return True


@functools.lru_cache(maxsize=16)
def discrete_system(order: int, theta: float, discretizer: str) -> tuple[Tensor, Tensor]:
    """A and B of `LegendreSystem`, which all calls share: not to be changed."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        a, b = continuous_system(order)
        a, b = discretize(a / theta, b / theta, discretizer)
        if discretizer == "euler" and not _stays_bounded(a):
            raise ValueError(
                f"Euler's method is unstable for order {order} and theta={theta:g}: "
                f"take theta of {order * order // 3 + 2} frames or more, or discretizer 'zoh'"
            )
    return a, b


def impulse_response(a: Tensor, b: Tensor, length: int) -> Tensor:
    """The memory after a single 1 at frame 0: row k is A^k B; differentiable.

    Args:
        a: (order, order), b: (order, 1), one discrete step.
        length: number of frames, at least 1.

    Returns: (length, order).
    """
    check_counts(length=length)
    response, power = b.T, a.T
    while len(response) < length:
        response = torch.cat([response, response @ power])
        power = power @ power
    return response[:length]


def transition_powers(a: Tensor, count: int) -> Tensor:
    """A^1 .. A^count, (count, order, order); differentiable."""
    powers = a[None]
    while len(powers) < count:
        powers = torch.cat([powers, powers @ powers[-1]])
    return powers[:count]


def truncated_length(response: Tensor, error: float) -> int:
    """The number of frames of an impulse response to keep.

    Args:
        response: (length, order) impulse response.
        error: greatest relative error: what is dropped of any coefficient sums, in absolute value, to at most
            `error` times the coefficient's whole sum. So for inputs within [-1, 1] no coefficient of the memory is
            wrong by more than `error` times the largest value it can take.

    Returns: a length from 1 to len(response).
    """
    magnitude = response.abs()
    kept_from = magnitude.flip(0).cumsum(0).flip(0)  # what frames k, k + 1, .. contribute
    needed = (kept_from > error * kept_from[0]).any(dim=1)
    return max(1, int(needed.sum()))


def legendre_readout(order: int, position: Tensor) -> Tensor:
    """Shifted Legendre polynomials P_i(2 r - 1), i = 0 .. order - 1 (equation 3).

    Args:
        position: (K,) points r in [0, 1] of the window; 0 is now, 1 is theta ago.

    Returns: (K, order), float64.
    """
    x = 2 * position.to(torch.float64) - 1
    values = [torch.ones_like(x), x]
    for n in range(1, order - 1):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[:order], dim=-1)


class LegendreSystem:
    """One frame of the discrete Legendre delay system, m[t] = A m[t-1] + B u[t].

    Args:
        order: number of Legendre coefficients d.
        theta: length of the window in frames.
        discretizer: "zoh" or "euler".

    Attributes: A (order, order) and B (order, 1), float64 on the CPU.

    Raises: ValueError for an order, a theta or a combination that cannot work.
    """

    def __init__(self, order: int, theta: float, discretizer: str = "zoh") -> None:
        check_order_and_theta(order, theta)
        self.order = order
        self.theta = float(theta)
        self.discretizer = discretizer
        with torch.inference_mode(False):
            # Copies: what somebody does to one system is not to reach others of the process.
            self.A, self.B = (part.clone() for part in discrete_system(order, self.theta, discretizer))

    def impulse_response(self, length: int) -> Tensor:
        """The memory after a single 1 at frame 0, (length, order), float64."""
        return impulse_response(self.A, self.B, length)

    def __reduce__(self):
        return LegendreSystem, (self.order, self.theta, self.discretizer)

    def decode(self, memory: Tensor, delay: float | Tensor) -> Tensor:
        """Read a past input out of the memory (equation 3).

        Args:
            memory: (..., order) the memory after frame t.
            delay: frames back from the end of frame t, from 0 to theta: a number or (K,). Frame t - k covers the
                delays k to k + 1, so k + 0.5 is its centre.

        Returns: (...) for a number, (..., K) for K delays.

        Raises: ValueError for a delay outside the window.
        """
        delays = torch.as_tensor(delay, dtype=torch.float64)
        if delays.dim() > 1:
            raise ValueError(f"delays must be a number or (K,), not of shape {tuple(delays.shape)}")
        if not bool(((delays >= 0) & (delays <= self.theta)).all()):
            raise ValueError(f"a delay must lie between 0 and theta={self.theta:g} frames, not {delay}")
        readout = legendre_readout(self.order, delays.reshape(-1) / self.theta).to(memory.device, memory.dtype)
        decoded = memory @ readout.T
        return decoded if delays.dim() else decoded.squeeze(-1)


class LegendreBuffers(nn.Module):
    """A module that holds a fixed Legendre delay system as its buffers `A` (order, order) and `B` (order, 1).

    The buffers never fall below float32, because rounding A to half precision makes the recurrence unstable, and are
    taken anew from the float64 system whenever the module changes its type. Weights trained with another theta or
    discretizer are refused.
    """

    A: Tensor
    B: Tensor

    def __init__(self, system: LegendreSystem) -> None:
        super().__init__()
        self.system = system
        # Where and as parameters are made: the default type, and the device of a `with torch.device(...)`.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("A", system.A.to(torch.get_default_device(), dtype, copy=True))
        self.register_buffer("B", system.B.to(torch.get_default_device(), dtype, copy=True))

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.device.type != "meta":
                dtype = torch.promote_types(buffer.dtype, torch.float32)
                setattr(self, name, getattr(self.system, name).to(buffer.device, dtype, copy=True))
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        error_msgs = args[-1]
        for name in ("A", "B"):
            loaded, own = state_dict.get(prefix + name), getattr(self.system, name)
            if loaded is not None and loaded.shape == own.shape and not loaded.is_meta:
                difference = (loaded.to("cpu", torch.float64) - own).abs().max()
                # What the checkpoint's type rounds away, and an average of checkpoints, still passes.
                if not difference <= min(0.01, 100 * torch.finfo(loaded.dtype).eps) * own.abs().max():
                    error_msgs.append(
                        f"{prefix}{name} was made with another theta or discretizer than this model's "
                        f"(theta={self.system.theta:g}, {self.system.discretizer})"
                    )
                # A copy, in the weights' place: with assign=True it becomes the buffer.
                dtype = torch.promote_types(loaded.dtype, torch.float32)
                state_dict[prefix + name] = own.to(loaded.device, dtype, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)
