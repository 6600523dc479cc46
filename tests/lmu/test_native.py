"""The compiled loop over frames: against the loop that torch runs, in float64, for every width of vectors."""

from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from espnet_lmu.lmu import LMU, loops, native

if not native.is_built():
    pytest.skip("installed without a C++ compiler", allow_module_level=True)

WIDTHS = [lanes for lanes in (4, 8, 16) if lanes <= native.widest_vector()]


def frames_case(frames, batch, size, hidden_size):
    torch.manual_seed(0)
    matrix = torch.randn(size, size) / size**0.5
    # a part of a wider batch, as a thread has it
    rows = torch.randn(frames + 1, batch + 2, size)[:, 1 : batch + 1]
    return matrix, rows


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize(
    ("frames", "batch", "size", "hidden_size"),
    [
        (5, 1, 1, 1),
        (5, 3, 1, 0),
        (7, 4, 16, 7),
        (7, 8, 48, 48),
        (1, 5, 63, 31),
        (9, 9, 97, 64),
        (3, 17, 160, 128),
        (4, 2, 50, 49),
    ],
)
def test_agrees_with_torch(lanes, frames, batch, size, hidden_size):
    matrix, rows = frames_case(frames, batch, size, hidden_size)
    expected, found = rows.double(), rows.clone()
    loops.run_frames(expected, matrix.double(), hidden_size)
    native.run_frames(found, matrix, hidden_size, lanes)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    outputs = expected[1:, :, :hidden_size]
    expected_grads, found_grads = rows[1:].double(), rows[1:].clone()
    loops.run_frames_backward(expected_grads, outputs, matrix.double())
    found_grads[-1] = expected_grads[-1]
    native.run_frames_backward(found_grads, outputs.float(), matrix, lanes)
    torch.testing.assert_close(found_grads.double(), expected_grads, rtol=1e-5, atol=1e-5)


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


needs_openmp = pytest.mark.skipif(native._parallel_region() is None, reason="torch does not run on GNU's OpenMP")


def test_torchs_threads_are_found():
    if "OpenMP" not in torch.__config__.parallel_info() or "libgomp" not in Path("/proc/self/maps").read_text():
        pytest.skip("torch does not run on GNU's OpenMP")
    assert native._parallel_region()


@needs_openmp
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 70])
def test_parts_of_the_batch_change_nothing(parts, frames, four_threads):
    matrix, rows = frames_case(frames, 7, 37, 20)
    whole, in_parts = rows.clone(), rows.clone()
    native.run_frames(whole, matrix, 20, parts=1)
    native.run_frames(in_parts, matrix, 20, parts=parts)
    assert in_parts.equal(whole)
    outputs = whole[1:, :, :20]
    whole, in_parts = rows[1:].clone(), rows[1:].clone()
    native.run_frames_backward(whole, outputs, matrix, parts=1)
    native.run_frames_backward(in_parts, outputs, matrix, parts=parts)
    assert in_parts.equal(whole)


@needs_openmp
def test_a_part_goes_from_thread_to_thread(four_threads):
    # More threads than cores, so that in some of the repetitions one ends long before another.
    matrix, rows = frames_case(200, 8, 64, 40)
    whole = rows.clone()
    native.run_frames(whole, matrix, 40, parts=1)
    for _ in range(300):
        in_parts = rows.clone()
        native.run_frames(in_parts, matrix, 40, parts=4)
        assert in_parts.equal(whole)


@needs_openmp
def test_number_of_parts(four_threads):
    assert native.parts_of_batch(400, 8, 768) == 2
    assert native.parts_of_batch(400, 64, 768) == 4  # torch's threads
    assert native.parts_of_batch(400, 7, 768) == 1  # too few sequences
    assert native.parts_of_batch(20, 8, 64) == 1  # too little work
    torch.set_num_threads(1)
    assert native.parts_of_batch(400, 64, 768) == 1


@pytest.mark.parametrize("lanes", WIDTHS)
def test_writes_nothing_beside_its_rows(lanes):
    matrix, _ = frames_case(3, 2, 21, 13)
    everything = torch.randn(4, 6, 21)
    before = everything.clone()
    native.run_frames(everything[:, 2:4], matrix, 13, lanes)
    for beside in (everything[0], everything[:, :2], everything[:, 4:]):
        assert beside.equal(before.as_strided(beside.shape, beside.stride(), beside.storage_offset()))


@pytest.mark.parametrize("lanes", WIDTHS)
def test_tanh_is_exact_to_some_units_in_the_last_place(lanes):
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.logspace(-37, 1, 2000), torch.tensor([3e38, -3e38])])
    rows = torch.stack([torch.zeros_like(values), values])[..., None]
    native.run_frames(rows, torch.zeros(1, 1), 1, lanes)
    expected = torch.tanh(values.double())
    error = ((rows[1, :, 0].double() - expected) / expected.where(expected != 0, torch.ones_like(expected))).abs()
    assert error.max() < 4 * 2**-24


@pytest.mark.parametrize("lanes", WIDTHS)
def test_infinite_and_undefined_values(lanes):
    rows = torch.tensor([0.0, float("inf"), float("-inf"), float("nan"), 0.0]).repeat(2, 1, 1)
    rows[0] = 0
    native.run_frames(rows, torch.zeros(5, 5), 5, lanes)
    torch.testing.assert_close(rows[1, 0], torch.tensor([0.0, 1.0, -1.0, float("nan"), 0.0]), equal_nan=True)


def test_denormal_numbers_are_flushed_in_the_loop_alone():
    rows = torch.full((2, 1, 16), 1e-39)
    native.run_frames(rows, torch.eye(16), 0)
    assert rows[1].eq(0).all()
    assert (torch.tensor(1e-39) + torch.tensor(1e-39)) > 0


def test_rows_with_gaps_between_their_numbers_are_refused():
    with pytest.raises(ValueError, match="side by side"):
        native.run_frames(torch.zeros(3, 2, 8).transpose(1, 2), torch.eye(2), 2)


@pytest.mark.parametrize(("memory_size", "frames"), [(8, 20), (256, 80)], ids=["fused", "windowed"])
def test_a_layer_uses_it_and_counts_without_it(memory_size, frames, monkeypatch):
    torch.manual_seed(0)
    layer, x = LMU(6, 20, memory_size, 30.0), torch.randn(3, frames, 6)
    calls = []
    run_frames = native.run_frames
    monkeypatch.setattr(native, "run_frames", lambda *args: calls.append(args) or run_frames(*args))
    compiled, _ = layer(x)
    assert calls
    calls.clear()
    with loops.frames_one_by_one():
        launched, _ = layer(x)
    assert not calls
    torch.testing.assert_close(compiled, launched, rtol=1e-4, atol=1e-5)


def test_a_package_without_it_works(monkeypatch):
    torch.manual_seed(0)
    layer, x = LMU(6, 20, 8, 30.0), torch.randn(3, 20, 6)
    compiled, _ = layer(x)
    monkeypatch.setattr(native, "_library", lambda: None)
    assert not native.is_built()
    torch.testing.assert_close(layer(x)[0], compiled, rtol=1e-4, atol=1e-5)


def test_tracing_takes_the_other_loop():
    torch.manual_seed(0)
    layer, x = LMU(6, 20, 8, 30.0), torch.randn(3, 5, 6)
    with torch.no_grad():
        traced = make_fx(lambda x: layer(x)[0])(x)
        torch.testing.assert_close(traced(2 * x), layer(2 * x)[0], rtol=1e-4, atol=1e-5)


def test_torch_compile_takes_the_other_loop():
    torch.manual_seed(0)
    layer, x = LMU(6, 20, 8, 30.0), torch.randn(3, 5, 6)
    expected, _ = layer(x)
    found, _ = torch.compile(layer, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert layer.W_h.grad.isfinite().all()
