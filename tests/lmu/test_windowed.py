"""The original LMU with the memory outside its loop: against the step loop, at sizes around a window's."""

import pytest
import torch
from lmu_agreement import assert_agree, assert_all_agree, original_case, outputs_and_gradients
from torch.nn import functional as F

from espnet_lmu.lmu import LMU, loops, native, windowed
from espnet_lmu.lmu.naive import naive_lmu


def windowed_lmu(x, e_x, e_h, e_m, W_x, W_h, W_m, A, B, h, m, lengths=None):
    drive = F.linear(x, torch.cat([W_x, e_x]))
    y, h, m = windowed.WindowedLMU.apply(drive, W_h, W_m, e_h, e_m, A, B, h, m, lengths)
    return y, (h, m)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"frames": 1},
        {"frames": 31},
        {"frames": 32},
        {"frames": 33, "batch": 1},
        {"frames": 64, "theta": 50.0},
        {"frames": 100, "theta": 400.0},
        {"frames": 70, "input_size": 1, "hidden_size": 1, "memory_size": 1},
        {"frames": 97, "hidden_size": 17, "memory_size": 40, "theta": 40.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("lengths", [False, True])
def test_agrees_with_the_step_loop(dtype, sizes, lengths):
    inputs, _ = original_case(dtype, **{"batch": 5} | sizes)
    batch, frames, _ = inputs["x"].shape
    lengths = torch.tensor([frames, max(1, frames // 3), 0, min(32, frames), frames - 1][:batch]) if lengths else None
    expected = outputs_and_gradients(lambda: naive_lmu(**inputs, lengths=lengths), inputs)
    assert_all_agree(outputs_and_gradients(lambda: windowed_lmu(**inputs, lengths=lengths), inputs), expected)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(windowed, "WINDOW", 2)
    inputs, _ = original_case(torch.float64, batch=2, frames=5, input_size=2, hidden_size=3, memory_size=2)

    def run(*values):
        y, state = windowed_lmu(*values, torch.tensor([5, 3]))
        return y, *state

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("lengths", [None, torch.tensor([70, 3, 0, 32, 69])])
def test_threads_over_the_batch_change_nothing(lengths, monkeypatch):
    inputs, _ = original_case(torch.float64, batch=5, frames=70)
    expected = outputs_and_gradients(lambda: naive_lmu(**inputs, lengths=lengths), inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(loops, "_OPERATIONS_OF_A_THREAD", 1)
    monkeypatch.setattr(loops, "_SEQUENCES_OF_A_THREAD", 1)
    try:
        assert_all_agree(outputs_and_gradients(lambda: windowed_lmu(**inputs, lengths=lengths), inputs), expected)
        with torch.inference_mode():
            y, _ = windowed_lmu(**{name: value.clone() for name, value in inputs.items()}, lengths=lengths)
        assert_agree(y, expected["y"])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_overflow_in_the_padding_leaves_gradients_finite():
    inputs, _ = original_case(torch.float32, frames=200)
    inputs["e_m"] = torch.full_like(inputs["e_m"], 30.0).requires_grad_()
    lengths = torch.tensor([3, 2, 1])
    results = outputs_and_gradients(lambda: windowed_lmu(**inputs, lengths=lengths), inputs)
    assert all(value.isfinite().all() for value in results.values())


def test_a_layer_takes_it_for_long_sequences_and_goes_on_from_its_state(monkeypatch):
    torch.manual_seed(0)
    layer = LMU(3, 8, windowed._SMALLEST_MEMORY, 200.0).double()
    x = torch.randn(2, 2 * windowed.WINDOW + 5, 3, dtype=torch.float64)
    calls = []
    run_frames = windowed._run_frames
    monkeypatch.setattr(windowed, "_run_frames", lambda *args: calls.append(args) or run_frames(*args))
    y, (h, m) = layer(x)
    assert len(calls) == 1
    state, pieces = None, []
    for piece in x.split(7, dim=1):
        part, state = layer(piece, state=state)
        pieces.append(part)
    assert len(calls) == 1  # short pieces take the other form
    assert_agree(torch.cat(pieces, 1), y)
    assert_agree(state[0], h)
    assert_agree(state[1], m)


@pytest.mark.skipif(
    not native.is_built() or native._parallel_region() is None, reason="the compiled loop has one thread here"
)
def test_a_loop_on_several_threads_keeps_its_memory():
    before = torch.get_num_threads()
    drive, h, m = torch.zeros(8, 400, 65), torch.zeros(8, 64), torch.zeros(8, 256)
    try:
        torch.set_num_threads(2)
        assert not windowed.pays_off(drive, h, m)
        assert windowed.pays_off(drive[:4], h[:4], m[:4])
        torch.set_num_threads(1)
        assert windowed.pays_off(drive, h, m)
    finally:
        torch.set_num_threads(before)
