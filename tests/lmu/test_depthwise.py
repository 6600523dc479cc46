"""The depthwise LMU: every route against the step loop and against an explicit convolution."""

import pytest
import torch
from lmu_agreement import assert_all_agree, outputs_and_gradients, randomise

from espnet_lmu.lmu import DepthwiseLMU

ROUTES = [("chunk", 1), ("chunk", 4), ("chunk", None), ("fft", None), ("auto", None)]


def make_layer(dtype=torch.float64, channels=7, order=5, theta=(4.0, 9.0, 30.0), **options) -> DepthwiseLMU:
    torch.manual_seed(0)
    layer = DepthwiseLMU(channels, order, theta, **options).to(dtype)
    randomise(layer)
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("frames", [1, 2, 11, 33])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_every_route_agrees_with_the_step_loop(dtype, frames, with_lengths, with_state):
    layer = make_layer(dtype)
    inputs = {
        "x": torch.randn(3, frames, 7, dtype=dtype, requires_grad=True),
        "state": torch.randn(3, 7, 5, dtype=dtype, requires_grad=True),
        **dict(layer.named_parameters()),
    }
    lengths = torch.tensor([frames, max(1, frames // 3), 0]) if with_lengths else None

    def run(route, size):
        layer.route, layer.chunk_size = route, size
        y, final = layer(inputs["x"], lengths, inputs["state"] if with_state else None)
        return y, (final,)

    expected = outputs_and_gradients(lambda: run("step", None), inputs)
    for route, size in ROUTES:
        assert_all_agree(outputs_and_gradients(lambda r=route, s=size: run(r, s), inputs), expected)


def test_it_is_a_depthwise_convolution_with_legendre_kernels():
    layer = make_layer(channels=5, theta=[3.0, 8.0])
    assert layer.group_sizes == [3, 2]
    x = torch.randn(2, 20, 5, dtype=torch.float64)
    kernels = [
        memory.system.impulse_response(20) @ weight.T
        for memory, weight in zip(layer.memories, layer.W_m.split(layer.group_sizes), strict=True)
    ]
    kernel = torch.cat(kernels, dim=1)
    kernel[0] += layer.w_x
    expected = torch.stack([(x[:, : t + 1].flip(1) * kernel[: t + 1]).sum(1) for t in range(20)], dim=1)
    torch.testing.assert_close(layer(x)[0], expected)


def test_frame_by_frame_gives_the_same():
    layer = make_layer(torch.float32)
    x = torch.randn(2, 9, 7)
    y, final = layer(x)
    state, frames = None, []
    for t in range(9):
        frame, state = layer(x[:, t : t + 1], state=state)
        frames.append(frame)
    torch.testing.assert_close(torch.cat(frames, dim=1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


def test_white_noise_keeps_its_level():
    torch.manual_seed(0)
    layer = DepthwiseLMU(64, 8, [8.0, 23.0])
    torch.nn.init.zeros_(layer.w_x)
    level = layer(torch.randn(8, 400, 64))[0][:, 100:].std()
    assert 0.8 < level < 1.25


def test_memory_stays_in_float32_under_autocast():
    layer = make_layer(torch.float32)
    x = torch.randn(2, 30, 7)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x.bfloat16())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), layer(x)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 2, "theta": [1.0, 2.0, 3.0]}, "3 windows theta cannot be spread over 2 channels"),
        ({"theta": []}, "0 windows"),
        ({"theta": 0.5}, "theta"),
        ({"route": "conv"}, "auto, step, chunk, fft"),
        ({"route": "fast"}, "route must be one of"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_layer(**options)
