"""The parallel LMU: every route against the step loop, and what the layer promises."""

import pytest
import torch
from lmu_agreement import assert_agree, assert_all_agree, outputs_and_gradients, randomise

from espnet_lmu.lmu import LegendreSystem, ParallelLMU, parallel
from espnet_lmu.lmu.legendre import truncated_length
from espnet_lmu.lmu.memory import (
    MemoryOperators,
    chunk_frames,
    fft_length,
    folding_saves_work,
    linear_memory,
    linear_readout,
    operators_of,
)
from espnet_lmu.lmu.naive import naive_memory

ROUTES = [("chunk", 1), ("chunk", 4), ("chunk", 64), ("chunk", None), ("fft", None), ("conv", None)]
SIZES = [
    {},
    {"frames": 1},
    {"frames": 2, "batch": 1},
    {"frames": 37, "theta": 5.5},
    {"frames": 16},
    {"theta": 500.0},
    {"channels": 1, "order": 1},
    {"channels": 5, "order": 9, "frames": 33},
]


def make_case(dtype, batch=3, frames=11, channels=3, order=6, theta=9.0):
    torch.manual_seed(frames)
    operators = operators_of(LegendreSystem(order, theta))
    inputs = {
        "u": torch.randn(batch, frames, channels, dtype=dtype, requires_grad=True),
        "state": torch.randn(batch, channels, order, dtype=dtype, requires_grad=True),
        "weight": torch.randn(7, channels, order, dtype=dtype, requires_grad=True),
    }
    return inputs, operators, torch.tensor([frames, max(1, frames // 3), 0][:batch])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_every_route_agrees_with_the_step_loop(dtype, sizes, with_lengths, with_state):
    inputs, operators, lengths = make_case(dtype, **sizes)
    frames = inputs["u"].shape[1]
    valid = (
        (torch.arange(frames) < lengths[:, None])[..., None] if with_lengths else torch.ones(1, 1, 1, dtype=torch.bool)
    )
    lengths = lengths if with_lengths else None
    state = inputs["state"] if with_state else None
    u, weight = inputs["u"], inputs["weight"]

    def reference():
        memory, final = naive_memory(u, *operators.matrices(u), state, lengths)
        return torch.einsum("btcd,hcd->bth", memory, weight) * valid, (final,)

    def memory_then_weight(route, size):
        memory, final = linear_memory(u * valid, operators, state, lengths, route, size)
        return torch.einsum("btcd,hcd->bth", memory, weight) * valid, (final,)

    def folded(route, size):
        y, final = linear_readout(u * valid, weight, operators, state, lengths, route, size)
        return y * valid, (final,)

    expected = outputs_and_gradients(reference, inputs)
    for route, size in [("step", None), *ROUTES]:
        assert_all_agree(outputs_and_gradients(lambda r=route, s=size: memory_then_weight(r, s), inputs), expected)
    for route, size in [("step", None), *ROUTES[:-1]]:
        assert_all_agree(outputs_and_gradients(lambda r=route, s=size: folded(r, s), inputs), expected)


@pytest.mark.parametrize("route, size", ROUTES)
def test_gradient_reaches_the_system_itself(route, size):
    torch.manual_seed(0)
    a = LegendreSystem(3, 4.0).A.clone().requires_grad_()
    b = LegendreSystem(3, 4.0).B.clone().requires_grad_()
    u, state = torch.randn(2, 7, 1).double(), torch.randn(2, 1, 3).double()
    inputs = {"A": a, "B": b}

    def run(memory):
        y, final = memory()
        return y, (final,)

    expected = outputs_and_gradients(lambda: run(lambda: naive_memory(u, a, b, state)), inputs)
    actual = outputs_and_gradients(
        lambda: run(lambda: linear_memory(u, MemoryOperators(a, b), state, None, route, size)), inputs
    )
    assert_all_agree(actual, expected)


def test_every_route_stays_exact_over_thousands_of_frames_in_float32():
    system = LegendreSystem(64, 100)
    torch.manual_seed(0)
    u = torch.randn(1, 3000, 1)
    exact, _ = linear_memory(u.double(), operators_of(system), route="chunk")
    for route in ("step", "chunk", "fft", "conv"):
        memory, final = linear_memory(u, operators_of(system), route=route)
        assert_agree(memory, exact.float(), route, tolerance=1e-5)
        assert_agree(final, exact[:, -1].float(), route, tolerance=1e-5)


@pytest.mark.parametrize("error", [1e-1, 1e-3])
def test_truncation_keeps_the_bound_that_was_asked_for(error):
    system = LegendreSystem(6, 10)
    torch.manual_seed(0)
    u = 2 * torch.rand(2, 300, 1, dtype=torch.float64) - 1
    u[0, :, 0] = system.impulse_response(300)[:, 3].sign().flip(0)  # the worst input for coefficient 3
    exact, _ = linear_memory(u, operators_of(system))
    cut, _ = linear_memory(u, operators_of(system), route="conv", truncate_ir=error)
    response = system.impulse_response(300)
    bound = error * response.abs().sum(0)
    difference = (cut - exact).abs().amax((0, 1, 2))
    assert (difference <= bound + 1e-12).all()
    assert difference.max() > 1e-3 * bound.max()  # something was cut
    assert truncated_length(response, error) < 300


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 9, 100, 129, 1000])
def test_transform_length_leaves_no_room_for_wrapping(frames):
    assert 2 * frames <= fft_length(frames) < 4 * frames + 4 and fft_length(frames) % 2 == 0


def test_short_sequences_take_short_chunks():
    assert [chunk_frames(None, frames, 256) for frames in (1, 3, 20, 400)] == [1, 4, 32, 32]
    assert chunk_frames(None, 400, 1024) == 8 and chunk_frames(5, 400, 256) == 5


def test_weight_is_folded_where_that_is_less_work():
    assert folding_saves_work(1500, 8, 1, 256, 512, "chunk", 16)
    assert not folding_saves_work(400, 8, 64, 8, 512, "chunk", 32)
    assert not folding_saves_work(400, 8, 8, 32, 256, "fft", 32)
    assert not folding_saves_work(10**6, 8, 1, 256, 1, "step", 32)


def make_layer(**options):
    torch.manual_seed(0)
    layer = ParallelLMU(5, 7, 6, theta=9.0, **{"memory_d": 3, "chunk_size": 4, **options})
    randomise(layer)
    return layer


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("activation", ["linear", "tanh", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_is_its_equations_on_every_route(folded, activation, bias, monkeypatch):
    monkeypatch.setattr(parallel, "folding_saves_work", lambda *sizes: folded)
    layer = make_layer(activation=activation, bias=bias).double()
    x = torch.randn(2, 11, 5, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    inputs = {"x": x, "state": state, **dict(layer.named_parameters())}

    def equations():
        f = {"linear": lambda v: v, "tanh": torch.tanh, "relu": torch.relu}[activation]
        b_u, b = (layer.b_u, layer.b) if bias else (0, 0)
        m, rows = state, []
        for t in range(11):
            m = m @ layer.A.T + (x[:, t] @ layer.W_u.T + b_u)[..., None] * layer.B.T
            rows.append(f(x[:, t] @ layer.W_x.T + m.flatten(1) @ layer.W_m.T + b))
        return torch.stack(rows, 1), (m,)

    def run():
        y, final = layer(x, state=state)
        return y, (final,)

    expected = outputs_and_gradients(equations, inputs)
    for layer.route in ("auto", "step", "chunk", "fft"):
        assert_all_agree(outputs_and_gradients(run, inputs), expected)


@pytest.mark.parametrize("route", ["step", "chunk", "fft"])
@pytest.mark.parametrize("folded", [False, True])
class TestSequences:
    """Lengths and state, on every route."""

    def test_padding_never_changes_a_result(self, route, folded, monkeypatch):
        monkeypatch.setattr(parallel, "folding_saves_work", lambda *sizes: folded)
        layer = make_layer(route=route)
        lengths = torch.tensor([13, 6, 1])
        x, state = torch.randn(3, 13, 5), torch.randn(3, 3, 6)
        for row, length in enumerate(lengths):
            x[row, length:] = float("nan")
        x.requires_grad_()
        y, final = layer(x, lengths, state)
        (y.sum() + final.sum()).backward()
        for row, length in enumerate(lengths):
            alone = x.detach()[row : row + 1, :length].requires_grad_()
            y_alone, final_alone = layer(alone, state=state[row : row + 1])
            (y_alone.sum() + final_alone.sum()).backward()
            assert_agree(y[row, :length], y_alone[0])
            assert not y[row, length:].any()
            assert_agree(final[row], final_alone[0])
            assert_agree(x.grad[row, :length], alone.grad[0])
            assert not x.grad[row, length:].any()

    def test_a_batch_of_no_sequences_gives_none(self, route, folded, monkeypatch):
        monkeypatch.setattr(parallel, "folding_saves_work", lambda *sizes: folded)
        layer = make_layer(route=route)
        y, final = layer(torch.zeros(0, 13, 5), torch.zeros(0, dtype=torch.long))
        y.sum().backward()
        assert y.shape == (0, 13, 7)
        assert final.shape == (0, 3, 6)
        assert not layer.W_u.grad.any()

    @pytest.mark.parametrize("piece", [1, 3])
    def test_pieces_equal_the_whole(self, route, folded, piece, monkeypatch):
        monkeypatch.setattr(parallel, "folding_saves_work", lambda *sizes: folded)
        layer = make_layer(route=route).double()
        x = torch.randn(2, 11, 5).double()
        whole, final = layer(x)
        state, pieces = None, []
        for part in x.split(piece, dim=1):
            y, state = layer(part, state=state)
            pieces.append(y)
        assert_agree(torch.cat(pieces, 1), whole)
        assert_agree(state, final)

    def test_half_precision_keeps_the_memory_in_float32(self, route, folded, monkeypatch):
        monkeypatch.setattr(parallel, "folding_saves_work", lambda *sizes: folded)
        layer = make_layer(route=route)
        x = torch.randn(2, 27, 5).bfloat16()
        expected, expected_final = layer(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            y, final = layer(x)
        assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
        assert_agree(y, expected, tolerance=0.02)
        assert_agree(final, expected_final, tolerance=0.01)
        y.float().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
        y, final = layer.bfloat16()(x)
        assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
        assert_agree(y, expected, tolerance=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_input_of_another_type_than_the_weights(dtype):
    torch.manual_seed(0)
    layer, x = ParallelLMU(5, 7, 6, 9.0), torch.randn(2, 12, 5).to(dtype)
    y, _ = layer(x)
    assert y.dtype == dtype
    assert_agree(y.float(), layer(x.float())[0], tolerance=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 1, 1), (2, 6)])
@pytest.mark.parametrize("route", ["auto", "step", "fft", "conv"])
def test_state_of_a_wrong_shape_is_refused(shape, route):
    with pytest.raises(ValueError, match=r"expected a state of shape \(2, 1, 6\)"):
        ParallelLMU(5, 7, 6, 9.0, route=route)(torch.zeros(2, 12, 5), None, torch.zeros(shape))


def test_operators_made_in_inference_mode_can_be_trained_with():
    layer = ParallelLMU(2, 3, 7, theta=31.25, route="chunk")  # a system that no other test has
    for route in ("chunk", "fft", "step"):
        layer.route = route
        with torch.inference_mode():
            layer(torch.randn(1, 9, 2))
        layer(torch.randn(1, 9, 2))[0].sum().backward()


def test_a_layer_can_be_traced_by_torch_export_before_others_run():
    """Operators are shared by all layers of a system, also what is made first while there are no numbers."""
    layer = ParallelLMU(2, 3, 7, theta=32.25, route="fft")
    x = torch.randn(1, 9, 2)
    exported = torch.export.export(layer, (x,), strict=False).module()
    assert_agree(exported(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"route": "scan"}, "route"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"memory_d": 0}, "memory_d"),
        ({"activation": "step"}, "activation"),
        ({"discretizer": "bilinear"}, "discretizer"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_layer(**options)
