"""The Legendre delay system: discretisation, stability, what the memory holds, and what is refused."""

import copy
import pickle

import pytest
import torch
from lmu_agreement import assert_agree

from espnet_lmu.lmu import LMU, LegendreSystem, ParallelLMU
from espnet_lmu.lmu.legendre import continuous_system, impulse_response, legendre_readout, truncated_length
from espnet_lmu.lmu.memory import linear_memory, operators_of


def energy_norm(order: int) -> torch.Tensor:
    return (2 * torch.arange(order, dtype=torch.float64) + 1).sqrt()


def test_continuous_system_is_the_papers():
    a, b = continuous_system(3)
    assert a.tolist() == [[-1, -1, -1], [3, -3, -3], [-5, 5, -5]]
    assert b.tolist() == [[1], [-3], [5]]


@pytest.mark.parametrize("order, theta", [(1, 3.0), (6, 2.5), (12, 40.0)])
def test_zero_order_hold_solves_the_differential_equation(order, theta):
    a, b = (part / theta for part in continuous_system(order))
    torch.manual_seed(0)
    start, u = torch.randn(order, 1, dtype=torch.float64), 0.7
    m, steps = start, 4000
    for _ in range(steps):  # Runge-Kutta over one frame with a constant input
        k1 = a @ m + b * u
        k2 = a @ (m + k1 / (2 * steps)) + b * u
        k3 = a @ (m + k2 / (2 * steps)) + b * u
        k4 = a @ (m + k3 / steps) + b * u
        m = m + (k1 + 2 * k2 + 2 * k3 + k4) / (6 * steps)
    system = LegendreSystem(order, theta)
    assert_agree(system.A @ start + system.B * u, m, tolerance=1e-9)


@pytest.mark.parametrize("order", [1, 7, 256, 1024])
def test_zero_order_hold_keeps_the_steady_state_of_the_continuous_system(order):
    a, b = continuous_system(order)
    system = LegendreSystem(order, 50)
    steady = torch.linalg.solve(torch.eye(order, dtype=torch.float64) - system.A, system.B)
    # a constant input is the first Legendre polynomial alone
    assert_agree(
        steady, torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.long), order).T.double(), tolerance=1e-6
    )
    assert_agree(a @ steady, -b, tolerance=1e-4)


def test_euler_is_one_step_of_the_differential_equation():
    a, b = continuous_system(5)
    system = LegendreSystem(5, 30, "euler")
    assert_agree(system.A, torch.eye(5, dtype=torch.float64) + a / 30)
    assert_agree(system.B, b / 30)


@pytest.mark.parametrize("order, theta", [(1, 2.0), (64, 10.0), (256, 1e5), (1024, 20.0), (1024, 1e4)])
def test_float32_system_never_grows_in_100000_steps(order, theta):
    system = LegendreSystem(order, theta)
    norm = energy_norm(order)
    power = (system.A.float().double() / norm[:, None] * norm).float()
    for _ in range(18):  # the step to the power of 1, 2, 4, .. 131072, in float32
        assert torch.linalg.vector_norm(power).item() <= 1.001 * order**0.5
        power = power @ power


def test_100000_steps_in_float32_stay_exact():
    system = LegendreSystem(96, 300)
    A, B = system.A.float(), system.B[:, 0].float()
    steps = 100_000
    u = torch.sin(torch.arange(steps) * 0.05) + torch.linspace(-1, 1, steps)
    m = torch.zeros(96)
    for gain in (u[:, None] * B).unbind(0):
        m = torch.addmv(gain, A, m)
    # what the window held long ago has decayed, so float64 may start late
    exact = torch.zeros(96, dtype=torch.float64)
    for value in u[-3000:].double():
        exact = system.A @ exact + system.B[:, 0] * value
    assert_agree(m, exact, tolerance=1e-3)


def test_1024_coefficients_run_through_the_layer():
    layer = ParallelLMU(2, 3, 1024, theta=500)
    y, state = layer(torch.randn(1, 40, 2))
    assert y.isfinite().all() and state.isfinite().all()


@pytest.mark.parametrize("length", [1, 2, 13])
def test_impulse_response_is_what_the_step_loop_gives(length):
    system = LegendreSystem(6, 9)
    m, rows = system.B, []
    for _ in range(length):
        rows.append(m[:, 0])
        m = system.A @ m
    assert_agree(system.impulse_response(length), torch.stack(rows))


def test_memory_holds_the_last_theta_frames():
    theta, order = 60, 16
    system = LegendreSystem(order, theta)
    t = torch.arange(200, dtype=torch.float64)
    u = torch.sin(2 * torch.pi * t / 45) + 0.5 * torch.cos(2 * torch.pi * t / 70 + 1)
    _, state = linear_memory(u.view(1, -1, 1), operators_of(system))
    frames_ago = torch.arange(1, theta - 1)
    decoded = system.decode(state[0, 0], frames_ago + 0.5)
    assert (decoded - u[199 - frames_ago]).abs().max() < 0.01
    assert_agree(system.decode(state, theta / 2)[0, 0], u[199 - 29 : 200 - 29].mean(), tolerance=0.05)


def test_memory_forgets_what_is_older_than_theta():
    system = LegendreSystem(32, 40)
    response = system.impulse_response(400)
    window = torch.arange(40) + 0.5
    assert system.decode(response[20], window).abs().max() > 0.3  # 20 frames ago: a peak
    assert system.decode(response[100], window).abs().max() < 0.02


def test_readout_is_the_shifted_legendre_polynomials():
    r = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    expected = torch.stack(
        [torch.ones(3).double(), 2 * r - 1, 6 * r**2 - 6 * r + 1, 20 * r**3 - 30 * r**2 + 12 * r - 1]
    )
    for order in (1, 2, 3, 4):
        assert_agree(legendre_readout(order, r), expected[:order].T)


@pytest.mark.parametrize("error", [1e-1, 1e-3, 1e-6])
def test_truncated_impulse_response_keeps_its_bound_and_no_more(error):
    system = LegendreSystem(6, 10)
    response = system.impulse_response(200)
    length = truncated_length(response, error)
    whole = response.abs().sum(0)
    assert (response[length:].abs().sum(0) <= error * whole).all()
    assert (response[length - 1 :].abs().sum(0) > error * whole).any()
    assert length < 200
    assert truncated_length(response[:3], error) == 3


@pytest.mark.parametrize(
    "order, theta, discretizer, message",
    [
        (0, 10, "zoh", "order"),
        (-3, 10, "zoh", "order"),
        (2.5, 10, "zoh", "order"),
        (True, 10, "zoh", "order"),
        (4, 0, "zoh", "theta"),
        (4, -1.0, "zoh", "theta"),
        (4, float("nan"), "zoh", "theta"),
        (4, float("inf"), "zoh", "theta"),
        (4, "ten", "zoh", "theta"),
        (4, 10, "tustin", "discretizer"),
        (16, 40, "euler", "unstable"),
        (64, 256, "euler", "unstable"),
        (4, 0.5, "zoh", "theta"),
    ],
)
def test_what_cannot_work_is_refused(order, theta, discretizer, message):
    with pytest.raises(ValueError, match=message):
        LegendreSystem(order, theta, discretizer)


@pytest.mark.parametrize("order", [1, 2, 8, 64])
def test_theta_that_the_refusal_of_euler_names_works(order):
    theta = order * order // 3 + 2
    assert LegendreSystem(order, theta, "euler").impulse_response(100_000)[-1].abs().max() < 1e-3


@pytest.mark.parametrize("delay", [-0.1, 10.1, float("nan"), torch.ones(2, 3)])
def test_delay_outside_the_window_is_refused(delay):
    with pytest.raises(ValueError, match="delay"):
        LegendreSystem(4, 10).decode(torch.zeros(4), delay)


@pytest.mark.parametrize("layer_type", [LMU, ParallelLMU])
class TestBuffers:
    """A and B of a layer."""

    def test_are_constants_in_the_state_dict(self, layer_type):
        layer = layer_type(3, 4, 5, theta=7)
        names = dict(layer.named_parameters())
        assert "A" not in names and "B" not in names
        assert layer.state_dict()["A"].shape == (5, 5) and layer.state_dict()["B"].shape == (5, 1)

    def test_stay_exact_when_the_layer_changes_its_type(self, layer_type):
        layer = layer_type(3, 4, 5, theta=7)
        assert torch.equal(layer.bfloat16().A, layer.system.A.float())
        assert torch.equal(layer.double().A, layer.system.A)
        assert torch.equal(layer.float().B, layer.system.B.float())

    def test_of_another_theta_are_refused(self, layer_type):
        weights = layer_type(3, 4, 5, theta=7).state_dict()
        with pytest.raises(RuntimeError, match="another theta"):
            layer_type(3, 4, 5, theta=8).load_state_dict(weights)

    @pytest.mark.parametrize(
        "order, theta, other, discretizer", [(8, 100.0, 100.5, "zoh"), (4, 4000.0, 4000.0, "euler")]
    )
    def test_of_nearly_the_same_system_are_refused(self, layer_type, order, theta, other, discretizer):
        weights = layer_type(3, 4, order, theta=theta).state_dict()
        with pytest.raises(RuntimeError, match="another theta or discretizer"):
            layer_type(3, 4, order, theta=other, discretizer=discretizer).load_state_dict(weights)

    def test_of_an_average_of_checkpoints_are_taken(self, layer_type):
        layer = layer_type(3, 4, 64, theta=200)
        average = {name: sum([value / 7] * 7) for name, value in layer.state_dict().items()}
        layer_type(3, 4, 64, theta=200).load_state_dict(average)

    def test_belong_to_one_layer_alone(self, layer_type):
        """An average of models is often taken in place, over all of their state."""
        layer, other = layer_type(3, 4, 5, theta=7).double(), layer_type(3, 4, 5, theta=7).double()
        for values in (*layer.state_dict().values(), layer.system.A, layer.system.B):
            values.mul_(0.5)
        assert torch.equal(other.A, LegendreSystem(5, 7).A)
        assert torch.equal(layer_type(3, 4, 5, theta=7).A, other.A.float())

    def test_are_where_parameters_are_and_of_their_type(self, layer_type):
        with torch.device("meta"):
            layer = layer_type(3, 4, 5, theta=7)
        assert layer.A.is_meta and layer.B.is_meta
        layer.to_empty(device="cpu")
        assert torch.equal(layer.A, layer.system.A.float())
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(layer_type(3, 4, 5, theta=7).A, layer.system.A)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_survive_a_half_precision_checkpoint(self, layer_type):
        layer = layer_type(3, 4, 5, theta=7)
        weights = {name: value.bfloat16() for name, value in layer.state_dict().items()}
        other = layer_type(3, 4, 5, theta=7)
        other.load_state_dict(weights)
        assert torch.equal(other.A, layer.system.A.float())
        assert weights["A"].dtype == torch.bfloat16  # the caller's dictionary is left alone

    def test_are_their_own_when_weights_are_assigned(self, layer_type):
        layer, other = layer_type(3, 4, 5, theta=7), layer_type(3, 4, 5, theta=7)
        other.load_state_dict(layer.state_dict(), assign=True)
        assert other.A.dtype == torch.float32 and torch.equal(other.A, layer.A)
        other.double().load_state_dict(layer.double().state_dict(), assign=True)
        assert other.A.data_ptr() != layer.system.A.data_ptr()

    def test_survive_copying_and_pickling(self, layer_type):
        layer = layer_type(3, 4, 5, theta=7)
        x = torch.randn(2, 6, 3)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x)[0], layer(x)[0])


def test_impulse_response_of_no_frames_is_refused():
    with pytest.raises(ValueError, match="length 0"):
        LegendreSystem(4, 10).impulse_response(0)


def test_impulse_response_is_differentiable():
    torch.manual_seed(0)
    a = (0.3 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    b = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: impulse_response(a, b, 5), (a, b))
