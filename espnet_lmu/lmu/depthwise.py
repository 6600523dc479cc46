"""A Legendre memory with a readout for each channel: a depthwise filter of long context that is still a recurrence.

B: batch, T: frames, C: channels, d: order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espnet_lmu.lmu.legendre import LegendreBuffers, LegendreSystem
from espnet_lmu.lmu.memory import linear_readout, operators_of
from espnet_lmu.lmu.naive import valid_frames
from espnet_lmu.lmu.original import check_sequences, computing_dtype
from espnet_lmu.lmu.parallel import check_route, choose_route


class DepthwiseLMU(nn.Module):
    """The parallel LMU (Chilkuri & Eliasmith 2021) with one memory and one linear readout for each channel.

        m[t, c] = A m[t-1, c] + B x[t, c]           d coefficients each, in a window of theta(c) frames
        y[t, c] = w_x[c] x[t, c] + W_m[c] . m[t, c]

    So channel c is filtered by a mixture of the d impulse responses of its Legendre system: a depthwise convolution
    whose kernel is as long as the window takes, with d + 1 weights. Several windows are spread over the channels, each
    over equally many (up to one). W_m starts with a gain of one for white noise, w_x with 1.

    Args:
        channels: C.
        memory_size: order d.
        theta: window in frames, or several.
        discretizer: "zoh" or "euler".
        route: "step", "chunk", "fft", or "auto", the fastest.
        chunk_size: frames per chunk of the chunk route, None for a size that suits the order.

    Raises: ValueError for sizes that cannot work.
    """

    def __init__(
        self,
        channels: int,
        memory_size: int,
        theta: float | Sequence[float],
        discretizer: str = "zoh",
        route: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_route(route, chunk_size)
        if route == "conv":
            raise ValueError("route must be one of auto, step, chunk, fft, not 'conv'")
        windows = list(theta) if isinstance(theta, Sequence) else [theta]
        if not 1 <= len(windows) <= channels:
            raise ValueError(f"{len(windows)} windows theta cannot be spread over {channels} channels")
        self.memories = nn.ModuleList(
            LegendreBuffers(LegendreSystem(memory_size, window, discretizer)) for window in windows
        )
        self.channels = channels
        self.group_sizes = [channels // len(windows) + (i < channels % len(windows)) for i in range(len(windows))]
        self.route = route
        self.chunk_size = chunk_size
        self.w_x = nn.Parameter(torch.empty(channels))
        self.W_m = nn.Parameter(torch.empty(channels, memory_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the readouts anew and set the direct weights to 1."""
        nn.init.ones_(self.w_x)
        for memory, weight in zip(self.memories, self.W_m.split(self.group_sizes), strict=True):
            # four windows hold the response but for a thousandth
            response = memory.system.impulse_response(4 * max(1, round(memory.system.theta)))
            nn.init.normal_(weight, std=float(response.square().sum()) ** -0.5)

    def extra_repr(self) -> str:
        windows = ", ".join(f"{memory.system.theta:g}" for memory in self.memories)
        return f"{self.channels}, {self.W_m.shape[1]}, theta=[{windows}], route={self.route}"

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Filter a batch of sequences.

        Args:
            x: (B, T, C).
            lengths: (B,) valid frames of each sequence, None for all.
            state: (B, C, d), the memory before the first frame, None for zero.

        Returns: y (B, T, C), zero after a sequence's length, and the state after its last valid frame.
        """
        lengths = check_sequences(x, self.channels, lengths)
        dtype = computing_dtype(self.W_m)
        valid = valid_frames(lengths, x.shape[1])
        u = x.to(dtype)
        if valid is not None:
            u = u.masked_fill(~valid[..., None], 0)
        route = choose_route(self.route, x.shape[1])
        states = [None] * len(self.memories) if state is None else state.to(dtype).split(self.group_sizes, dim=1)
        outputs, finals = [], []
        with torch.autocast(x.device.type, enabled=False):
            for memory, part, weight, entry in zip(
                self.memories,
                u.split(self.group_sizes, dim=2),
                self.W_m.to(dtype).split(self.group_sizes),
                states,
                strict=True,
            ):
                operators = operators_of(memory.system)
                y, final = linear_readout(part, weight, operators, entry, lengths, route, self.chunk_size)
                outputs.append(y)
                finals.append(final)
        y = (torch.cat(outputs, dim=2) + self.w_x.to(dtype) * u).to(x.dtype)
        return (y if valid is None else y.masked_fill(~valid[..., None], 0)), torch.cat(finals, dim=1)
