"""The textbook step loops: the specification that every faster route must agree with.

B: batch, T: frames, I: input size, H: hidden size, d: memory size (order), C: memory channels.
`lengths` (B,) counts the valid frames of each sequence, None for all. Outputs after a sequence's length are zero and
the returned state is the one after its last valid frame, so padding never changes a result.
"""

import torch
from torch import Tensor


def valid_frames(lengths: Tensor | None, frames: int) -> Tensor | None:
    """(B, T) true at the valid frames, None when all are."""
    if lengths is None:
        return None
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def naive_lmu(
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
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The original LMU (Voelker et al. 2019, equations 6 and 7), one frame at a time.

    Args:
        x: (B, T, I). e_x (1, I), e_h (1, H), e_m (1, d), W_x (H, I), W_h (H, H), W_m (H, d): the six parameters.
        A: (d, d), B: (d, 1), the Legendre system. h: (B, H), m: (B, d), the state before the first frame.

    Returns: y (B, T, H), (h (B, H), m (B, d)).
    """
    valid = valid_frames(lengths, x.shape[1])
    outputs = []
    for t in range(x.shape[1]):
        u = x[:, t] @ e_x.T + h @ e_h.T + m @ e_m.T
        m_next = m @ A.T + u @ B.T
        h_next = torch.tanh(x[:, t] @ W_x.T + h @ W_h.T + m_next @ W_m.T)
        output = h_next
        if valid is not None:
            alive = valid[:, t, None]
            output = torch.where(alive, h_next, 0)
            h_next, m_next = torch.where(alive, h_next, h), torch.where(alive, m_next, m)
        h, m = h_next, m_next
        outputs.append(output)
    return torch.stack(outputs, dim=1), (h, m)


def naive_memory(
    u: Tensor, A: Tensor, B: Tensor, state: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The linear Legendre memory, m[t] = A m[t-1] + B u[t] in each channel, one frame at a time.

    Args:
        u: (B, T, C). A: (d, d), B: (d, 1). state: (B, C, d) before the first frame, None for zero.

    Returns: memory (B, T, C, d) (after a sequence's length it holds its last value) and the state (B, C, d).
    """
    valid = valid_frames(lengths, u.shape[1])
    m = u.new_zeros(u.shape[0], u.shape[2], A.shape[0]) if state is None else state
    memory = []
    for t in range(u.shape[1]):
        m_next = m @ A.T + u[:, t, :, None] * B.T
        m = m_next if valid is None else torch.where(valid[:, t, None, None], m_next, m)
        memory.append(m)
    return torch.stack(memory, dim=1), m
