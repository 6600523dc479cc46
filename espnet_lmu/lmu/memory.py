"""The linear Legendre memory over whole sequences: four routes that give the same numbers.

Source: Chilkuri, Eliasmith, "Parallelizing Legendre Memory Unit Training", ICML 2021. Without feedback the memory is a
fixed linear filter of its input, so all frames can be computed at once.

B: batch, T: frames, C: memory channels, d: order, H: outputs of the readout, L: frames per chunk.

    step    the recurrence itself: the reference, and the way to run frame by frame
    chunk   inside a chunk one product [inputs, entry state] x operator; between chunks a short scan with A^L
    fft     convolution with the impulse response by Fourier transforms
    conv    convolution with the impulse response cut where it has decayed: approximate, within a bound one sets

`linear_memory` returns the memory; `linear_readout` returns W m[t] for a weight W without the (B, T, C, d) tensor, by
folding W into the filter.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lmu.lmu.legendre import (
    LegendreSystem,
    discrete_system,
    impulse_response,
    transition_powers,
    truncated_length,
)
from espnet_lmu.lmu.naive import naive_memory

ROUTES = ("step", "chunk", "fft", "conv")


class MemoryOperators:
    """The matrices that the routes need, made once from a discrete system and kept.

    Args:
        A: (d, d) and B: (d, 1), best in float64. They may require a gradient, which then flows through everything;
            such an object serves one forward pass.
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:
        self.A = A
        self.B = B
        self.order = A.shape[0]
        self._kept: dict[tuple, Tensor] = {}
        self._taps: dict[tuple[int, float], int] = {}

    def _keep(self, name: str, size: int, like: Tensor, make) -> Tensor:
        """The operator as `like`'s type and device; made in A's own type, outside inference mode and autocast."""
        key = (name, size, like.dtype, like.device)
        if key in self._kept:
            return self._kept[key]
        with torch.inference_mode(False), torch.autocast(self.A.device.type, enabled=False):
            return self._kept_if_real(key, make().to(like.device, like.dtype))

    def _kept_if_real(self, key: tuple, operator: Tensor) -> Tensor:
        if type(operator) is Tensor:  # while torch.export traces, it has no numbers
            self._kept[key] = operator
        return operator

    def matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """A (d, d) and B (d, 1)."""
        return self._keep("A", 1, like, lambda: self.A), self._keep("B", 1, like, lambda: self.B)

    def power(self, exponent: int, like: Tensor) -> Tensor:
        """A^exponent, (d, d)."""
        return self._keep("power", exponent, like, lambda: torch.linalg.matrix_power(self.A, exponent))

    def impulse(self, length: int, like: Tensor) -> Tensor:
        """The impulse response, (length, d)."""
        # kept at powers of two, so that sequences of many lengths share a few
        size = 1 << (length - 1).bit_length()
        return self._keep("impulse", size, like, lambda: impulse_response(self.A, self.B, size))[:length]

    def truncated_impulse(self, frames: int, error: float, like: Tensor) -> Tensor:
        """The impulse response of T frames without its end, (K, d): see `legendre.truncated_length`."""
        response = self.impulse(frames, like)
        key = (frames, error)
        if key not in self._taps:
            self._taps[key] = truncated_length(response.detach(), error)
        return response[: self._taps[key]]

    def spectrum(self, length: int, like: Tensor) -> Tensor:
        """The Fourier transform of the impulse response's first length / 2 frames, complex (d, length / 2 + 1)."""
        key = ("spectrum", length, like.dtype, like.device)
        if key in self._kept:
            return self._kept[key]
        with torch.inference_mode(False):
            return self._kept_if_real(key, torch.fft.rfft(self.impulse(length // 2, like).T, length))

    def chunk(self, size: int, like: Tensor) -> Tensor:
        """The operator of one chunk, (L + d, L, d): memory[j] = sum_i [inputs, entry state][i] operator[i, j]."""
        return self._keep("chunk", size, like, lambda: self._make_chunk(size))

    def _make_chunk(self, size: int) -> Tensor:
        response = impulse_response(self.A, self.B, size)
        lag = torch.arange(size, device=response.device) - torch.arange(size, device=response.device)[:, None]
        inputs = torch.where(lag[..., None] >= 0, response[lag.clamp(min=0)], 0)
        states = transition_powers(self.A, size).permute(2, 0, 1)
        return torch.cat([inputs, states])


@functools.lru_cache(maxsize=16)
def _shared_operators(order: int, theta: float, discretizer: str) -> MemoryOperators:
    return MemoryOperators(*discrete_system(order, theta, discretizer))


def operators_of(system: LegendreSystem) -> MemoryOperators:
    """The operators of a fixed system, shared by all layers that have the same."""
    return _shared_operators(system.order, system.theta, system.discretizer)


def fft_length(frames: int) -> int:
    """A transform length of at least 2 T that is fast: a power of two, or 1.25, 1.5 or 1.75 of one."""
    power = 1 << max(0, frames - 1).bit_length()
    return 2 * next(n for n in (power * 5 // 8, power * 6 // 8, power * 7 // 8, power) if n >= frames)


def chunk_frames(chunk_size: int | None, frames: int, order: int) -> int:
    """Frames per chunk: at most what was asked for, by default what keeps the chunk's operator near 2 million numbers.

    From 8 to 64 frames the speed is the same within 10 % (measured on a CPU). A short sequence, as in streaming, takes
    a chunk of the next power of two.
    """
    size = chunk_size or max(8, min(32, 8192 // order))
    return min(size, 1 << (frames - 1).bit_length())


def _last_frame(lengths: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) sequence numbers and (B,) the number of each one's last valid frame, -1 for none."""
    batch, frames, _ = u.shape
    rows = torch.arange(batch, device=u.device)
    return rows, torch.full_like(rows, frames - 1) if lengths is None else lengths - 1


def _final(found: Tensor, last: Tensor, state: Tensor | None) -> Tensor:
    """The state after each sequence, (B, C, d): `found`, or the initial one of a sequence without frames."""
    initial = torch.zeros_like(found) if state is None else state
    return torch.where((last >= 0)[:, None, None], found, initial)


def _reversed(u: Tensor, frame: Tensor) -> Tensor:
    """Each sequence of (B, T, C) from its frame (B,) back to its first, then zeros, (B, C, T)."""
    rows = torch.arange(len(u), device=u.device)[:, None]
    back = frame[:, None] - torch.arange(u.shape[1], device=u.device)
    return torch.where((back >= 0)[..., None], u[rows, back.clamp(min=0)], 0).transpose(1, 2)


def _free_response(operators: MemoryOperators, state: Tensor, frames: int) -> Tensor:
    """What the initial state (B, C, d) leaves in each frame without any input, (B, T, C, d)."""
    A, _ = operators.matrices(state)
    response = (state @ A.T)[:, None]
    while response.shape[1] < frames:
        response = torch.cat([response, response @ operators.power(response.shape[1], state).T], dim=1)
    return response[:, :frames]


def _convolve(u: Tensor, response: Tensor) -> Tensor:
    """(B, T, C) with an impulse response (K, d), (B, T, C, d)."""
    batch, frames, channels = u.shape
    signals = F.pad(u.transpose(1, 2).reshape(batch * channels, 1, frames), (len(response) - 1, 0))
    memory = F.conv1d(signals, response.flip(0).T[:, None])
    return memory.view(batch, channels, -1, frames).permute(0, 3, 1, 2)


def _split_into_chunks(u: Tensor, operators: MemoryOperators, state: Tensor | None, size: int) -> Tensor:
    """Each chunk's inputs and entry state side by side, (B, chunks, C, L + d)."""
    batch, frames, channels = u.shape
    count = -(-frames // size)
    inputs = F.pad(u, (0, 0, 0, count * size - frames)).view(batch, count, size, channels).transpose(2, 3)
    entry = u.new_zeros(batch, channels, operators.order) if state is None else state
    entries = [entry]
    if count > 1:
        gains = inputs[:, :-1] @ operators.impulse(size, u).flip(0)
        transition = operators.power(size, u).T
        for gain in gains.unbind(1):
            entries.append(entries[-1] @ transition + gain)
    return torch.cat([inputs, torch.stack(entries, dim=1)], dim=-1)


def linear_memory(
    u: Tensor,
    operators: MemoryOperators,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    route: str = "chunk",
    chunk_size: int | None = None,
    truncate_ir: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """m[t] = A m[t-1] + B u[t] in each channel.

    Args:
        u: (B, T, C), float32 or float64, zero after each sequence's length.
        operators: of the system.
        state: (B, C, d) before the first frame, None for zero.
        lengths: (B,) valid frames, None for all.
        route: one of `ROUTES`.
        chunk_size: L, for the chunk route, None for a size that suits the order.
        truncate_ir: for the conv route, the greatest relative error (see `legendre.truncated_length`); 0 drops nothing.

    Returns: memory (B, T, C, d), meaningless after a sequence's length, and the state after its last frame (B, C, d).
    """
    batch, frames, channels = u.shape
    if route == "step" or not batch:  # reshaping and MKL's transforms refuse a batch of no sequences
        return naive_memory(u, *operators.matrices(u), state, lengths)
    if route == "chunk":
        chunk_size = chunk_frames(chunk_size, frames, operators.order)
        chunks = _split_into_chunks(u, operators, state, chunk_size)
        memory = chunks @ operators.chunk(chunk_size, u).flatten(1)
        memory = memory.view(batch, -1, channels, chunk_size, operators.order).transpose(2, 3)
        memory = memory.reshape(batch, -1, channels, operators.order)[:, :frames]
    else:
        if route == "fft":
            length = fft_length(frames)
            spectrum = torch.fft.rfft(u.transpose(1, 2), length)[:, :, None] * operators.spectrum(length, u)
            memory = torch.fft.irfft(spectrum, length)[..., :frames].permute(0, 3, 1, 2)
        else:
            memory = _convolve(u, operators.truncated_impulse(frames, truncate_ir, u))
        if state is not None:
            memory = memory + _free_response(operators, state, frames)
    rows, last = _last_frame(lengths, u)
    return memory, _final(memory[rows, last.clamp(min=0)], last, state)


def _read(memory: Tensor, weight: Tensor) -> Tensor:
    """The readout (B, T, H) of a memory (B, T, C, d) by a weight (H, C, d)."""
    return memory.flatten(2) @ weight.flatten(1).T


def _read_chunks(chunks: Tensor, operator: Tensor, weight: Tensor, frames: int) -> Tensor:
    """`_read` of what `_split_into_chunks` gives, with the weight folded into the operator."""
    folded = torch.einsum("ijd,hcd->cijh", operator, weight).reshape(-1, operator.shape[1] * len(weight))
    return (chunks.flatten(2) @ folded).view(len(chunks), -1, len(weight))[:, :frames]


def linear_readout(
    u: Tensor,
    weight: Tensor,
    operators: MemoryOperators,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    route: str = "chunk",
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The readout W m[t] of the memory of `linear_memory`, with the weight folded into the filter where it can be.

    Args: as `linear_memory`, and weight (H, C, d).

    Returns: (B, T, H), meaningless after a sequence's length, and the state (B, C, d).
    """
    frames = u.shape[1]
    if route == "step" or not len(u):
        memory, final = linear_memory(u, operators, state, lengths, route)
        return _read(memory, weight), final
    rows, last = _last_frame(lengths, u)
    frame = last.clamp(min=0)
    if route == "chunk":
        chunk_size = chunk_frames(chunk_size, frames, operators.order)
        chunks = _split_into_chunks(u, operators, state, chunk_size)
        operator = operators.chunk(chunk_size, u)
        y = _read_chunks(chunks, operator, weight, frames)
        final = chunks[rows, frame // chunk_size] @ operator[:, frame % chunk_size].transpose(0, 1)
    else:
        length = fft_length(frames)
        response = operators.impulse(frames, u)
        kernel = torch.fft.rfft(weight @ response.T, length)
        spectrum = torch.fft.rfft(u.transpose(1, 2), length)
        y = torch.fft.irfft(torch.einsum("bcf,hcf->bhf", spectrum, kernel), length)[..., :frames].transpose(1, 2)
        final = _reversed(u, frame) @ response
        if state is not None:
            free = _free_response(operators, state, frames)
            y = y + _read(free, weight)
            final = final + free[rows, frame]
    return y, _final(final, last, state)


def folding_saves_work(frames: int, batch: int, channels: int, order: int, outputs: int, route: str, size: int) -> bool:
    """Whether `linear_readout` is less work than `linear_memory` and a product with the weight, in multiply-adds."""
    rows = batch * frames
    unfolded = rows * channels * order * outputs
    if route == "chunk":
        folded = channels * (size + order) * outputs * (size * order + rows)
        return folded < rows * channels * (size + order) * order + unfolded
    if route == "fft":
        # measured on a CPU: a point of a transform takes as long as 32 log2(points) multiply-adds of a product
        transform = 32 * (2 * frames).bit_length()
        kernel = frames * channels * outputs * (order + transform)
        folded = kernel + 16 * rows * channels * outputs + rows * outputs * transform
        return folded < rows * channels * order * transform + unfolded
    return False
