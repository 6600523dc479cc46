"""The general LMU: each option against its equation, and against the original LMU."""

import itertools
import math

import pytest
import torch
import torch.nn.utils.prune
from lmu_agreement import assert_agree, assert_all_agree, outputs_and_gradients, randomise

from espnet_lmu.lmu import LMU, GeneralLMU, LegendreSystem, ParallelLMU
from espnet_lmu.lmu.legendre import continuous_system, discretize

ACTIVATIONS = {"linear": lambda v: v, "tanh": torch.tanh, "relu": torch.relu}


def make_layer(dtype=torch.float64, theta=20.0, **options):
    torch.manual_seed(0)
    hidden_size = 0 if options.get("hidden_cell") == "none" else 5
    layer = GeneralLMU(4, hidden_size, 3, theta, **{"memory_d": 2, **options}).to(dtype)
    randomise(layer)
    return layer


def equations(layer, x, h, m, activation="tanh"):
    """The class docstring, one frame at a time, with nothing shared with the implementation."""
    f, p = ACTIVATIONS[activation], dict(layer.named_parameters())
    if "theta_inv" in p:
        a, b = continuous_system(layer.memory_size)
        theta_inv = p["theta_inv"].double()
        A, B = (part.to(x.dtype) for part in discretize(a * theta_inv, b * theta_inv, layer.system.discretizer))
    else:
        A, B = layer.A, layer.B
    rows = []
    for t in range(x.shape[1]):
        u = x[:, t] @ p["W_u"].T + p.get("b_u", 0)
        if "W_uh" in p:
            u = u + h @ p["W_uh"].T
        if "W_um" in p:
            u = u + m.flatten(1) @ p["W_um"].T
        m = m @ A.T + u[:, :, None] * B[:, 0]
        if layer.hidden_cell == "none":
            rows.append(torch.cat([m.flatten(1), x[:, t]], 1) if layer.input_to_hidden else m.flatten(1))
            continue
        v = m.flatten(1) @ p["W_m"].T + p.get("b", 0)
        if "W_x" in p:
            v = v + x[:, t] @ p["W_x"].T
        if "W_h" in p:
            v = v + h @ p["W_h"].T
        h = f(v)
        rows.append(h)
    return torch.stack(rows, 1), (h, m)


def compare_with_equations(layer, activation="tanh", frames=7):
    dtype = layer.W_u.dtype
    x = torch.randn(2, frames, 4, dtype=dtype, requires_grad=True)
    h = torch.randn(2, layer.hidden_size, dtype=dtype, requires_grad=True)
    m = torch.randn(2, layer.memory_d, 3, dtype=dtype, requires_grad=True)
    inputs = {"x": x, "m": m, **({"h": h} if layer.hidden_size else {}), **dict(layer.named_parameters())}
    expected = outputs_and_gradients(lambda: equations(layer, x, h, m, activation), inputs)
    actual = outputs_and_gradients(lambda: layer(x, state=(h, m)), inputs)
    assert actual["y"].shape == (2, frames, layer.output_size)
    assert_all_agree(actual, expected)


@pytest.mark.parametrize("hidden_cell", ["none", "linear", "recurrent"])
@pytest.mark.parametrize("memory_d", [1, 2])
@pytest.mark.parametrize("trainable_theta", [False, True])
@pytest.mark.parametrize("discretizer", ["zoh", "euler"])
def test_every_connection_is_its_equation(hidden_cell, memory_d, trainable_theta, discretizer):
    for hidden_to_memory, memory_to_memory, input_to_hidden, bias in itertools.product([False, True], repeat=4):
        if hidden_cell == "none" and hidden_to_memory:
            continue
        layer = make_layer(
            hidden_cell=hidden_cell,
            memory_d=memory_d,
            trainable_theta=trainable_theta,
            discretizer=discretizer,
            hidden_to_memory=hidden_to_memory,
            memory_to_memory=memory_to_memory,
            input_to_hidden=input_to_hidden,
            bias=bias,
            hidden_bias=not bias,
        )
        compare_with_equations(layer)


@pytest.mark.parametrize(
    "options", [*({"route": route} for route in ("auto", "chunk", "fft", "conv")), {"hidden_to_memory": True}]
)
def test_a_batch_of_no_sequences_gives_none(options):
    layer = make_layer(**options)
    y, (h, m) = layer(torch.zeros(0, 7, 4, dtype=torch.float64))
    assert (y.shape, h.shape, m.shape) == ((0, 7, 5), (0, 5), (0, 2, 3))


@pytest.mark.parametrize("activation", ["linear", "tanh", "relu"])
@pytest.mark.parametrize("hidden_to_memory", [False, True])
@pytest.mark.parametrize("hidden_cell", ["linear", "recurrent"])
def test_activation_is_the_one_asked_for(activation, hidden_to_memory, hidden_cell):
    layer = make_layer(activation=activation, hidden_to_memory=hidden_to_memory, hidden_cell=hidden_cell, memory_d=1)
    compare_with_equations(layer, activation)


@pytest.mark.parametrize("hidden_cell", ["none", "linear", "recurrent"])
@pytest.mark.parametrize("route", ["step", "chunk", "fft", "conv"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("trainable_theta", [False, True])
def test_every_route_without_feedback(hidden_cell, route, dtype, trainable_theta):
    options = {"hidden_cell": hidden_cell, "trainable_theta": trainable_theta, "input_to_hidden": True}
    layer = make_layer(dtype, route=route, chunk_size=4, truncate_ir=0.0, **options)
    compare_with_equations(layer)


@pytest.mark.parametrize("hidden_cell", ["linear", "recurrent"])
@pytest.mark.parametrize("hidden_to_memory", [False, True])
@pytest.mark.parametrize("memory_to_memory", [False, True])
@pytest.mark.parametrize("route", ["auto", "step"])
class TestSequences:
    """Lengths and state, with and without feedback, fused and step by step."""

    def test_padding_never_changes_a_result(self, hidden_cell, hidden_to_memory, memory_to_memory, route):
        layer = make_layer(
            torch.float32,
            hidden_cell=hidden_cell,
            memory_d=1,
            hidden_to_memory=hidden_to_memory,
            memory_to_memory=memory_to_memory,
            route=route,
            bias=True,
        )
        lengths = torch.tensor([9, 4, 1, 0])
        x, h, m = torch.randn(4, 9, 4), torch.randn(4, 5), torch.randn(4, 1, 3)
        for row, length in enumerate(lengths):
            x[row, length:] = float("nan")
        y, (h_final, m_final) = layer(x, lengths, (h, m))
        for row, length in enumerate(lengths.tolist()):
            one = slice(row, row + 1)
            assert not y[row, length:].any()
            if length == 0:
                assert torch.equal(h_final[row], h[row]) and torch.equal(m_final[row], m[row])
                continue
            y_alone, (h_alone, m_alone) = layer(x[one, :length], state=(h[one], m[one]))
            assert_agree(y[one, :length], y_alone)
            assert_agree(h_final[one], h_alone)
            assert_agree(m_final[one], m_alone)

    def test_frame_by_frame_equals_the_whole(self, hidden_cell, hidden_to_memory, memory_to_memory, route):
        layer = make_layer(
            hidden_cell=hidden_cell,
            memory_d=1,
            hidden_to_memory=hidden_to_memory,
            memory_to_memory=memory_to_memory,
            route=route,
        )
        x = torch.randn(2, 7, 4).double()
        whole, final = layer(x)
        state, pieces = None, []
        for frame in x.split(1, dim=1):
            y, state = layer(frame, state=state)
            pieces.append(y)
        assert_agree(torch.cat(pieces, 1), whole)
        for part, expected in zip(state, final, strict=True):
            assert_agree(part, expected)


@pytest.mark.parametrize("route", ["auto", "step"])
def test_configured_as_the_original_it_gives_the_originals_numbers(route):
    torch.manual_seed(0)
    original = LMU(4, 5, 3, 9.0)
    randomise(original)
    general = GeneralLMU(
        4,
        5,
        3,
        9.0,
        hidden_cell="recurrent",
        hidden_to_memory=True,
        memory_to_memory=True,
        input_to_hidden=True,
        hidden_bias=False,
        route=route,
    )
    names = {"W_u": "e_x", "W_uh": "e_h", "W_um": "e_m", "W_x": "W_x", "W_h": "W_h", "W_m": "W_m"}
    weights = original.state_dict()
    general.load_state_dict({name: weights[names.get(name, name)] for name in general.state_dict()})
    x, lengths = torch.randn(3, 12, 4), torch.tensor([12, 7, 1])
    expected, (h, m) = original(x, lengths)
    actual, (h_general, m_general) = general(x, lengths)
    assert_agree(actual, expected)
    assert_agree(h_general, h)
    assert_agree(m_general[:, 0], m)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for name, parameter in general.named_parameters():
        assert_agree(parameter.grad, getattr(original, names[name]).grad, name)


def test_without_feedback_it_gives_the_parallel_layers_numbers():
    torch.manual_seed(0)
    layer = ParallelLMU(4, 5, 3, 9.0, memory_d=2)
    randomise(layer)
    general = GeneralLMU(4, 5, 3, 9.0, memory_d=2, input_to_hidden=True, bias=True)
    general.load_state_dict(layer.state_dict())
    x = torch.randn(3, 12, 4)
    assert_agree(general(x)[0], layer(x)[0])


@pytest.mark.parametrize("discretizer", ["zoh", "euler"])
@pytest.mark.parametrize("hidden_to_memory", [False, True])
def test_gradient_of_theta_is_that_of_finite_differences(discretizer, hidden_to_memory):
    layer = make_layer(trainable_theta=True, discretizer=discretizer, hidden_to_memory=hidden_to_memory)
    x = torch.randn(2, 6, 4).double()

    def run(theta_inv):
        y, (_, m) = torch.func.functional_call(layer, {"theta_inv": theta_inv}, (x,))
        return y, m

    assert torch.autograd.gradcheck(run, (layer.theta_inv,))


def test_learnt_theta_is_shown():
    layer = make_layer(trainable_theta=True)
    for theta_inv, theta in ((0.025, 40.0), (-0.01, math.inf), (0.0, math.inf)):
        torch.nn.init.constant_(layer.theta_inv, theta_inv)
        assert layer.theta == theta and f"theta={theta:g}" in repr(layer)


@pytest.mark.parametrize("route", ["auto", "step"])
@pytest.mark.parametrize("feedback", [False, True])
def test_weights_that_are_no_parameters_count(feedback, route):
    """Parametrizations, pruning and replicas for several GPUs put other tensors in the place of parameters."""
    layer = make_layer(
        memory_d=1,
        hidden_cell="recurrent",
        hidden_to_memory=feedback,
        memory_to_memory=feedback,
        input_to_hidden=True,
        bias=True,
        route=route,
    )
    names = [name for name, _ in layer.named_parameters()]
    assert len(names) == (8 if feedback else 6)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    expected, _ = layer(x)
    for name in names:
        torch.nn.utils.prune.identity(layer, name)
        assert_agree(layer(x)[0], expected, name)


def test_state_of_a_wrong_shape_is_refused():
    layer = make_layer(hidden_to_memory=True)
    with pytest.raises(ValueError, match=r"expected a state of shape \(2, 5\) and \(2, 2, 3\)"):
        layer(torch.zeros(2, 6, 4, dtype=torch.float64), None, (torch.zeros(1, 5), torch.zeros(1, 2, 3)))


def test_theta_is_learnt():
    torch.manual_seed(0)
    layer = GeneralLMU(1, 0, 4, theta=30.0, hidden_cell="none", trainable_theta=True)
    assert layer.theta == pytest.approx(30)
    assert not {"A", "B"} & layer.state_dict().keys()
    target = GeneralLMU(1, 0, 4, theta=20.0, hidden_cell="none")
    with torch.no_grad():
        layer.W_u.fill_(1.0)
        target.W_u.fill_(1.0)
    layer.W_u.requires_grad_(False)
    x = torch.randn(4, 60, 1)
    optimizer = torch.optim.Adam([layer.theta_inv], lr=1e-3)
    for _ in range(60):
        loss = (layer(x)[0] - target(x)[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert layer.theta == pytest.approx(20, abs=1)


def test_negative_theta_counts_as_an_endless_one_and_still_learns():
    layer = make_layer(trainable_theta=True)
    with torch.no_grad():
        layer.theta_inv.fill_(-0.1)
    y, (_, m) = layer(torch.randn(2, 5, 4).double())
    assert not m.any()
    m.sum().backward()
    assert layer.theta_inv.grad != 0


def test_truncation_changes_little_and_something():
    exact, cut = make_layer(hidden_cell="none"), make_layer(hidden_cell="none", route="conv", truncate_ir=1e-3)
    x = torch.randn(1, 300, 4).double()
    difference = (cut(x)[0] - exact(x)[0]).abs().view(300, 2, 3).amax((0, 1))
    largest_u = (x @ exact.W_u.T).abs().max()
    bound = 1e-3 * LegendreSystem(3, 20.0).impulse_response(300).abs().sum(0) * largest_u
    assert (difference <= bound).all() and difference.max() > 1e-9


def test_half_precision():
    for options in (
        {},
        {"hidden_to_memory": True},
        {"hidden_to_memory": True, "memory_d": 1},
        {"trainable_theta": True},
    ):
        layer = make_layer(torch.float32, **options)
        x = torch.randn(2, 15, 4).bfloat16()
        expected, _ = layer(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            y, (h, m) = layer(x)
        assert y.dtype == torch.bfloat16 and h.dtype == m.dtype == torch.float32
        assert_agree(y, expected, tolerance=0.01)


def test_initialisation_is_that_of_keras_lmu():
    torch.manual_seed(0)
    layer = GeneralLMU(
        80,
        120,
        20,
        50.0,
        memory_d=4,
        hidden_cell="recurrent",
        hidden_to_memory=True,
        memory_to_memory=True,
        input_to_hidden=True,
        bias=True,
    )
    for weights, fan in (((layer.W_u, layer.W_uh), 80 + 120 + 4), ((layer.W_m, layer.W_x), 80 + 80 + 120)):
        bound = (6 / fan) ** 0.5
        assert all(0.9 * bound < weight.abs().max() <= bound for weight in weights)
    assert_agree(layer.W_um @ layer.W_um.T, torch.eye(4))
    assert_agree(layer.W_h @ layer.W_h.T, torch.eye(120))
    assert not layer.b_u.any() and not layer.b.any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_cell": "gated"}, "hidden_cell"),
        ({"hidden_cell": "none", "hidden_to_memory": True}, "hidden_to_memory"),
        ({"hidden_to_memory": True, "route": "fft"}, "feedback"),
        ({"memory_to_memory": True, "route": "chunk"}, "feedback"),
        ({"memory_d": 0}, "memory_d"),
        ({"truncate_ir": -1}, "truncate_ir"),
        ({"truncate_ir": float("nan")}, "truncate_ir"),
        ({"bias": "false"}, "bias 'false' must be true or false"),
        ({"theta": 2.0, "discretizer": "euler"}, "unstable"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_layer(**options)


@pytest.mark.parametrize("hidden_cell, hidden_size", [("none", 5), ("linear", 0)])
def test_hidden_size_must_go_with_the_cell(hidden_cell, hidden_size):
    with pytest.raises(ValueError, match="hidden_size"):
        GeneralLMU(4, hidden_size, 3, 9.0, hidden_cell=hidden_cell)
