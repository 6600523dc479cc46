"""How the tests of the LMU compare a route with the step loop."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from espnet_lmu.lmu import LMU

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}


def assert_agree(actual: Tensor, expected: Tensor, what: str = "values", tolerance: float | None = None) -> None:
    """Fail unless the root mean square difference is small beside the expected values; NaN fails."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    actual, expected = actual.detach(), expected.detach()
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    difference = (actual.double() - expected.double()).square().mean().sqrt()
    scale = expected.double().square().mean().sqrt() + 1e-3
    assert difference <= limit * scale, f"{what} differ by {difference / scale:.2e}, more than {limit:.0e}"


def outputs_and_gradients(
    run: Callable[[], tuple[Tensor, Iterable[Tensor]]], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Everything two routes must agree on: y, each part of the final state, the gradient of each input.

    The loss weighs every output differently, so that no mistake cancels.
    """
    y, state = run()
    results = {"y": y, **{f"state {i}": part for i, part in enumerate(state)}}
    loss = sum(
        (value * torch.linspace(-1, 1.7, value.numel()).to(value).view_as(value)).sum() for value in results.values()
    )
    names = [name for name, value in inputs.items() if value.requires_grad]
    gradients = torch.autograd.grad(loss, [inputs[name] for name in names], allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        results[f"gradient of {name}"] = torch.zeros_like(inputs[name]) if gradient is None else gradient
    return results


def assert_all_agree(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float | None = None) -> None:
    """`assert_agree` for each result."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_agree(value, expected[name], name, tolerance)


def randomise(module: torch.nn.Module) -> None:
    """Give every parameter a value that is not its initial one (e_m and the biases begin at zero)."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "theta_inv":
                parameter += 0.1 * torch.randn_like(parameter)


ORIGINAL_PARAMETERS = ("e_x", "e_h", "e_m", "W_x", "W_h", "W_m")


def original_case(dtype, batch=3, frames=11, input_size=5, hidden_size=7, memory_size=6, theta=9.0):
    """Random inputs of `naive_lmu`, by name, and an original LMU layer with the same parameters."""
    torch.manual_seed(frames)
    layer = LMU(input_size, hidden_size, memory_size, theta).to(dtype)
    randomise(layer)
    inputs = {
        "x": torch.randn(batch, frames, input_size),
        **{name: getattr(layer, name) for name in ORIGINAL_PARAMETERS},
    }
    inputs |= {"A": layer.A, "B": layer.B}
    inputs |= {"h": torch.randn(batch, hidden_size), "m": torch.randn(batch, memory_size)}
    return {
        name: value.detach().to(dtype).requires_grad_(name not in ("A", "B")) for name, value in inputs.items()
    }, layer
