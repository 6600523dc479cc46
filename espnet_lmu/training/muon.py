"""Muon: momentum whose update of a weight matrix is made orthogonal (``optim: muon``)."""

from __future__ import annotations

import torch
from torch.optim.adamw import adamw

# Jordan et al. 2024, section "Newton-Schulz": this odd polynomial, applied five times, takes every singular value of a
# matrix whose norm is 1 to about 1.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly the closest semi-orthogonal matrix, U V^T where G = U S V^T, of each G of a batch.

    Args:
        matrices: (batch, rows, columns), float32.

    Returns:
        the same shape; singular values between about 0.7 and 1.2, but for those of G near zero.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the smaller of the two Gram matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _is_matrix(parameter: torch.Tensor) -> bool:
    # A kernel of a convolution is a matrix from its input, taps included, to its output. Of a depthwise one every
    # row has an input of its own, so there is nothing to make orthogonal; nor is there in a single row or column.
    return parameter.ndim > 1 and min(parameter.shape[:2]) > 1


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for weight matrices, AdamW for biases, norms, depthwise kernels and other vectors.

    An update of a matrix of A rows and B columns is 0.2 sqrt(max(A, B)) times the orthogonalized gradient with
    Nesterov momentum: with that factor (Liu et al. 2025, "Muon is scalable for LLM training") its entries are as large
    as AdamW's, and the same learning rate and weight decay serve both.

    Embeddings and output layers count as matrices, since a parameter does not say what it belongs to.

    ``torch.optim.Muon`` takes matrices alone, and its products in bfloat16 took more than a second a step without
    such instructions (75 matrices of 128 x 128); here they are float32 and of all matrices of one shape at once.

    Args:
        params: parameters or groups of them, float32.
        lr: learning rate of both.
        momentum: of the gradients of matrices.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled, of both: a parameter loses ``lr * weight_decay`` of itself a step.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        numbers = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        for name, value in (*numbers.items(), *(("betas", beta) for beta in betas)):
            if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
                raise ValueError(f"optim_conf: {name} {value!r} is text; write a number such as 0.001 or 1.0e-3")
        if len(betas) != 2:
            raise ValueError(f"optim_conf: betas {list(betas)}: give two numbers")
        for name, value in (("momentum", momentum), ("betas", min(betas)), ("betas", max(betas))):
            if not 0 <= value < 1:
                raise ValueError(f"optim_conf: {name} must be at least 0 and below 1, not {value}")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"optim_conf: {name} must not be negative: {value}")
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; returns what `closure` (the loss again) returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            self._update_matrices(group, [p for p in parameters if _is_matrix(p)])
            self._update_others(group, [p for p in parameters if not _is_matrix(p)])
        return loss

    def _update_matrices(self, group: dict, parameters: list[torch.Tensor]) -> None:
        by_shape: dict[tuple, list[torch.Tensor]] = {}
        for p in parameters:
            by_shape.setdefault((p.shape, p.device), []).append(p)
        for same in by_shape.values():
            directions = []
            for p in same:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                average = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                directions.append(p.grad.lerp(average, group["momentum"]).flatten(1))
            updates = orthogonalize(torch.stack(directions))
            scale = 0.2 * max(updates.shape[1:]) ** 0.5
            for p, update in zip(same, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)

    def _update_others(self, group: dict, parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
