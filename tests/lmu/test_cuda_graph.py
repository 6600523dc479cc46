"""The original LMU's loops in pieces of many frames; on a GPU, as CUDA graphs."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lmu_agreement import assert_agree, assert_all_agree, outputs_and_gradients, randomise

from espnet_lmu.lmu import LMU, cuda_graph, original
from espnet_lmu.lmu.naive import naive_lmu
from espnet_lmu.lmu.original import fused_lmu

FRAMES = cuda_graph.FRAMES
PARAMETERS = ("e_x", "e_h", "e_m", "W_x", "W_h", "W_m")
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))


def make_inputs(frames: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(frames)
    layer = LMU(5, 7, 6, theta=9.0).to(dtype)
    randomise(layer)
    inputs = {"x": torch.randn(3, frames, 5), **{name: getattr(layer, name) for name in PARAMETERS}}
    inputs |= {"A": layer.A, "B": layer.B, "h": torch.randn(3, 7), "m": torch.randn(3, 6)}
    return {name: value.detach().to(device, dtype).requires_grad_(name not in "AB") for name, value in inputs.items()}


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("frames", [1, FRAMES - 1, FRAMES, FRAMES + 1, 2 * FRAMES + 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pieces_agree_with_the_step_loop(device, frames, dtype, monkeypatch):
    """On a CPU nothing is captured, but frames go through the graphs' buffers all the same, twice.

    These have room for more sequences.
    """
    if device == "cpu":
        loops = {}

        def uncaptured(kind, rows, hidden_size):
            if kind not in loops:
                loops[kind] = kind(8, rows.shape[2], hidden_size, rows, capture=lambda run, device: run)
            return loops[kind]

        monkeypatch.setattr(original, "captured", uncaptured)
    inputs = make_inputs(frames, device, dtype)
    lengths = torch.tensor([frames, max(1, frames // 3), 0], device=device)
    expected = outputs_and_gradients(lambda: naive_lmu(**inputs, lengths=lengths), inputs)
    for _ in range(2):
        actual = outputs_and_gradients(lambda: fused_lmu(**inputs, lengths=lengths), inputs)
        assert_all_agree(actual, expected)


def test_threads_do_not_share_the_buffers_at_a_time():
    drives = torch.randn(2, 3 * FRAMES + 1, 4, 6)
    transitions = torch.randn(2, 6, 6) / 6
    loop = cuda_graph.ForwardFrames(4, 6, 3, drives, capture=lambda run, device: run)
    expected = drives.clone()
    for states, transition in zip(expected, transitions, strict=True):
        loop(states, transition)

    def run(number: int) -> bool:
        states = drives[number % 2].clone()
        loop(states, transitions[number % 2])
        return torch.equal(states, expected[number % 2])

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, range(10)))


def test_buffers_made_in_inference_mode_serve_training(monkeypatch):
    monkeypatch.setattr(cuda_graph.ForwardFrames.__init__, "__defaults__", (lambda run, device: run,))
    loop = functools.partial(
        cuda_graph._captured, cuda_graph.ForwardFrames, 1, 2, 1, torch.device("cpu"), torch.float32
    )
    cuda_graph._captured.cache_clear()
    states, transition = torch.ones(3, 1, 2), torch.eye(2)
    with torch.inference_mode():
        loop()(states.clone(), transition)
    loop()(states, transition)
    assert states[:, 0, 1].tolist() == [1, 2, 3]
    cuda_graph._captured.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_graphs_are_used_and_kept():
    inputs = make_inputs(10, "cuda", torch.float32)
    cuda_graph._captured.cache_clear()
    for _ in range(3):
        outputs_and_gradients(lambda: fused_lmu(**inputs), inputs)
    fewer = {**inputs, **{name: inputs[name][:2] for name in ("x", "h", "m")}}
    with torch.no_grad():
        assert_agree(fused_lmu(**fewer)[0], naive_lmu(**fewer)[0])
    information = cuda_graph._captured.cache_info()
    assert information.misses == 2 and information.hits == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", ["original", "parallel"])
def test_bfloat16_training_on_a_gpu_is_near_float64(kind):
    from espnet_lmu.lmu import ParallelLMU

    torch.manual_seed(1)
    layer = (LMU if kind == "original" else ParallelLMU)(32, 32, 16, theta=50.0)
    x = torch.randn(4, 300, 32)
    exact, _ = layer.double()(x.double())
    with torch.autocast("cuda", torch.bfloat16):
        actual, _ = layer.float().cuda()(x.cuda())
    error = (actual.double().cpu() - exact).norm() / exact.norm()
    assert error < 0.02
