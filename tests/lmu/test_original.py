"""The original LMU: the fused form against the step loop, and what the layer promises."""

import math
import threading

import numpy as np
import pytest
import torch
from lmu_agreement import (
    ORIGINAL_PARAMETERS,
    assert_agree,
    assert_all_agree,
    original_case,
    outputs_and_gradients,
)

from espnet_lmu.lmu import LMU, loops
from espnet_lmu.lmu.loops import single_thread
from espnet_lmu.lmu.naive import naive_lmu
from espnet_lmu.lmu.original import fused_lmu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"frames": 1},
        {"frames": 2, "batch": 1},
        {"frames": 53, "theta": 6.5},
        {"theta": 400.0},
        {"input_size": 1, "hidden_size": 1, "memory_size": 1},
        {"hidden_size": 17, "memory_size": 33},
        {"hidden_size": 259, "frames": 3},  # its input product has columns beside its own
    ],
    ids=str,
)
@pytest.mark.parametrize("lengths", [False, True])
def test_fused_form_agrees_with_the_step_loop(dtype, sizes, lengths):
    inputs, _ = original_case(dtype, **sizes)
    batch, frames, _ = inputs["x"].shape
    lengths = torch.tensor([frames, max(1, frames // 3), 0][:batch]) if lengths else None
    expected = outputs_and_gradients(lambda: naive_lmu(**inputs, lengths=lengths), inputs)
    actual = outputs_and_gradients(lambda: fused_lmu(**inputs, lengths=lengths), inputs)
    assert_all_agree(actual, expected)


def test_gradients_are_those_of_finite_differences():
    inputs, _ = original_case(torch.float64, batch=2, frames=4, input_size=2, hidden_size=3, memory_size=2)
    lengths = torch.tensor([4, 2])

    def run(*values):
        y, state = fused_lmu(*values, lengths)
        return y, *state

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


def test_parameters_are_exactly_the_six():
    layer = LMU(5, 7, 6, 9.0)
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes == {"e_x": (1, 5), "e_h": (1, 7), "e_m": (1, 6), "W_x": (7, 5), "W_h": (7, 7), "W_m": (7, 6)}
    assert set(layer.state_dict()) - set(shapes) == {"A", "B"}


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    layer = LMU(300, 400, 200, 100.0)
    for encoder in (layer.e_x, layer.e_h):
        bound = math.sqrt(3 / encoder.shape[1])
        assert 0.95 * bound < encoder.abs().max() <= bound
    assert not layer.e_m.any()
    for kernel in (layer.W_x, layer.W_h, layer.W_m):
        assert abs(kernel.std().item() / math.sqrt(2 / sum(kernel.shape)) - 1) < 0.02


def test_padding_never_changes_a_result():
    inputs, layer = original_case(torch.float32, frames=13)
    x, lengths = inputs["x"].detach().clone(), torch.tensor([13, 5, 1])
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    state = (inputs["h"].detach(), inputs["m"].detach())
    x.requires_grad_()
    y, (h, m) = layer(x, lengths, state)
    (y.sum() + h.sum() + m.sum()).backward()
    for row, length in enumerate(lengths):
        alone = x.detach()[row : row + 1, :length].requires_grad_()
        y_alone, (h_alone, m_alone) = layer(alone, state=tuple(part[row : row + 1] for part in state))
        (y_alone.sum() + h_alone.sum() + m_alone.sum()).backward()
        assert_agree(y[row, :length], y_alone[0], "y")
        assert not y[row, length:].any()
        assert_agree(h[row], h_alone[0], "h")
        assert_agree(m[row], m_alone[0], "m")
        assert_agree(x.grad[row, :length], alone.grad[0], "gradient")
        assert not x.grad[row, length:].any()


def test_a_recurrence_that_overflows_in_the_padding_leaves_gradients_finite():
    layer = LMU(2, 3, 4, 5.0)
    with torch.no_grad():
        layer.e_m.fill_(30.0)
    x = torch.randn(2, 200, 2)
    y, _ = layer(x, torch.tensor([3, 2]))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_frame_by_frame_equals_the_whole():
    inputs, layer = original_case(torch.float64)
    whole, (h, m) = layer(inputs["x"])
    state, pieces = None, []
    for frame in inputs["x"].split(1, dim=1):
        y, state = layer(frame, state=state)
        pieces.append(y)
    assert_agree(torch.cat(pieces, 1), whole)
    assert_agree(state[0], h)
    assert_agree(state[1], m)


def test_gradient_reaches_the_piece_before_through_the_state():
    inputs, layer = original_case(torch.float64)
    x = inputs["x"]
    (expected,) = torch.autograd.grad(layer(x)[0].square().sum(), x)
    first, state = layer(x[:, :4])
    second, _ = layer(x[:, 4:], state=state)
    (actual,) = torch.autograd.grad(first.square().sum() + second.square().sum(), x)
    assert_agree(actual, expected)


@pytest.mark.parametrize("half_layer", [False, True], ids=["autocast", "bfloat16 layer"])
def test_half_precision_runs_the_recurrence_in_float32(half_layer):
    inputs, layer = original_case(torch.float32, frames=150)
    x = inputs["x"].detach().bfloat16()
    if half_layer:
        layer.bfloat16()
        y, state = layer(x)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(x)
    layer.float()
    expected, expected_state = layer(x.float())
    assert y.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in state)
    assert_agree(y, expected, tolerance=0.01)
    assert_agree(state[1], expected_state[1])
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_backward_under_autocast_keeps_the_gradients_exact():
    inputs, layer = original_case(torch.float32, frames=30)
    expected = torch.autograd.grad(layer(inputs["x"])[0].square().sum(), list(layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(inputs["x"])[0].square().sum()
        actual = torch.autograd.grad(loss, list(layer.parameters()))
    for name, gradient, exact in zip(ORIGINAL_PARAMETERS, actual, expected, strict=True):
        # the product with the input's weight lies outside the recurrence and may round to half precision
        assert_agree(gradient, exact, name, tolerance=0.02 if name in ("e_x", "W_x") else None)


def test_no_gradient_and_inference_mode():
    inputs, layer = original_case(torch.float32)
    expected = layer(inputs["x"])[0]
    with torch.no_grad():
        assert not layer(inputs["x"])[0].requires_grad
    with torch.inference_mode():
        assert_agree(layer(inputs["x"])[0], expected)


def test_loop_runs_on_one_thread_and_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        inputs, layer = original_case(torch.float32)
        layer(inputs["x"])[0].sum().backward()
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), single_thread(torch.device("cpu")):
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_threads_over_the_batch_change_nothing(batch, monkeypatch):
    inputs, _ = original_case(torch.float64, batch=batch)
    expected = outputs_and_gradients(lambda: fused_lmu(**inputs), inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(loops, "_OPERATIONS_OF_A_THREAD", 1)
    monkeypatch.setattr(loops, "_SEQUENCES_OF_A_THREAD", 1)
    try:
        assert_all_agree(outputs_and_gradients(lambda: fused_lmu(**inputs), inputs), expected)
        with torch.inference_mode():
            y, _ = fused_lmu(**{name: value.clone() for name, value in inputs.items()})
        assert_agree(y, expected["y"])
    finally:
        torch.set_num_threads(before)


def test_runs_from_several_threads_at_once():
    inputs, layer = original_case(torch.float32, frames=60)
    expected = layer(inputs["x"])[0]
    results = [None] * 4

    def work(i):
        results[i] = layer(inputs["x"])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert_agree(result, expected)


@pytest.mark.parametrize(
    "shape, lengths",
    [
        ((2, 4), None),
        ((2, 4, 6), None),
        ((2, 0, 5), None),
        ((2, 4, 5), torch.tensor([4])),
        ((2, 4, 5), torch.tensor([4, 5])),
        ((2, 4, 5), torch.tensor([4, -1])),
        ((2, 4, 5), torch.tensor([4.0, 2.5])),
        ((2, 4, 5), torch.tensor([True, True])),
        ((2, 4, 5), [4, 2]),
    ],
)
def test_input_of_a_wrong_shape_is_refused(shape, lengths):
    with pytest.raises(ValueError, match="expected"):
        LMU(5, 7, 6, 9.0)(torch.zeros(shape), lengths)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_input_that_is_not_of_floating_point_numbers_is_refused(dtype):
    with pytest.raises(ValueError, match="expected x of floating-point numbers"):
        LMU(5, 7, 6, 9.0)(torch.ones(2, 4, 5, dtype=dtype))


def test_lengths_of_any_whole_type():
    torch.manual_seed(0)
    layer, x, lengths = LMU(5, 7, 6, 9.0), torch.randn(9, 8, 5), torch.tensor([8, 0, 3, 1, 5, 8, 2, 7, 4])
    expected, (expected_h, _) = layer(x, lengths)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        y, (h, _) = layer(x, lengths.to(dtype))
        assert torch.equal(y, expected) and torch.equal(h, expected_h)


@pytest.mark.parametrize("frames", [4, 70])
@pytest.mark.parametrize("shapes", [((6, 7), (6, 256)), ((1, 7), (1, 256)), ((3, 1), (3, 1)), ((7,), (256,))])
def test_state_of_a_wrong_shape_is_refused(frames, shapes):
    """The form of long sequences would leave the rest of a larger one as it finds it in memory."""
    with pytest.raises(ValueError, match=r"expected a state of shape \(3, 7\) and \(3, 256\)"):
        LMU(5, 7, 256, 300.0)(torch.zeros(3, frames, 5), None, tuple(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("sizes, message", [((0, 7), "input_size 0"), ((5, 0), "hidden_size 0"), ((3.5, 7), "3.5")])
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        LMU(*sizes, 6, 9.0)


def test_sizes_may_be_numpys():
    assert LMU(np.int64(5), np.int64(7), np.int64(6), 9.0)(torch.zeros(2, 4, 5))[0].shape == (2, 4, 7)
