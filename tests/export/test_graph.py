"""Graphs of encoders, run by onnxruntime and TorchScript, against PyTorch, which gets one utterance at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_lmu import LMUEncoder
from espnet_lmu.errors import UserError
from espnet_lmu.export.check import check_difference, reference, run_chunks
from espnet_lmu.export.graph import OfflineGraph, WaveGraph, espnet_log_mel
from espnet_lmu.export.layers import LoopLMU
from espnet_lmu.export.streaming import StreamingGraph, check_streamable
from espnet_lmu.lmu import LMU

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from weights import draw_weights

from espnet_lmu.export.onnx_files import OnnxFile, quantize, write_onnx  # noqa: E402

SMALL = {"output_size": 16, "num_blocks": 2, "memory_size": 6, "theta": 12.0, "attention_heads": 2}
BINS = 20
VARIANTS = {
    "original": {},
    "original, both directions, conv2d": {"bidirectional": True, "input_layer": "conv2d"},
    "parallel": {"lmu_type": "parallel", "memory_d": 3, "discretizer": "euler", "theta": 200.0},
    "parallel, both directions, dw_striding": {
        "lmu_type": "parallel",
        "bidirectional": True,
        "input_layer": "dw_striding",
    },
    "both directions, dw_striding8": {"bidirectional": True, "linear_units": 24, "input_layer": "dw_striding8"},
    "attention nearby": {"lmu_type": "parallel", "attention_context": [5, 3]},
    "attention within chunks": {"attention_context": [0, 4], "input_layer": "conv2d2"},
    "attention within chunks longer than an utterance": {"attention_context": [5, 200]},
    "self-conditioned": {"interctc_layer_idx": [1], "interctc_use_conditioning": True, "use_attention": False},
}
CAUSAL = {"attention_context": [5, [4, 3]]}
STREAMING = {
    "original": {},
    "parallel, dw_striding": {"lmu_type": "parallel", "memory_d": 3, "input_layer": "dw_striding"},
    "dw_striding8": {"linear_units": 24, "input_layer": "dw_striding8", "input_channels": 8},
    "gated": {"linear_units": 24, "gated_linear_units": True},
    "self-conditioned": {"interctc_layer_idx": [1], "interctc_use_conditioning": True},
    "no attention": {"use_attention": False, "input_layer": "dw_striding"},
    "conv2d": {"input_layer": "conv2d"},
    "conv2d1": {"input_layer": "conv2d1", "lmu_type": "parallel"},
    "conv2d6": {"input_layer": "conv2d6", "use_attention": False},
}


def make_model(normalize=None, **options) -> SimpleNamespace:
    """What of an ESPnetASRModel becomes a graph."""
    torch.manual_seed(0)
    encoder = draw_weights(LMUEncoder(BINS, **{**SMALL, **options})).eval()
    if encoder.interctc_use_conditioning:
        encoder.conditioning_layer = torch.nn.Linear(7, encoder.output_size())
    return SimpleNamespace(encoder=encoder, ctc=CTC(7, encoder.output_size()).eval(), normalize=normalize)


def write_offline(path, graph: OfflineGraph) -> OnnxFile:
    write_onnx(
        path,
        graph,
        (torch.randn(2, 37, BINS), torch.tensor([37, 30])),
        ["features", "lengths"],
        ["log_probs", "frames"],
        {
            "features": {0: "batch", 1: "frames"},
            "lengths": {0: "batch"},
            "log_probs": {0: "batch", 1: "encoder_frames"},
            "frames": {0: "batch"},
        },
        {"model_type": "espnet_lmu"},
    )
    return OnnxFile(path)


def largest_difference(model, file: OnnxFile, lengths: list[int]) -> float:
    x = torch.randn(len(lengths), max(lengths), BINS)
    expected = [reference(model, x[i, :length]) for i, length in enumerate(lengths)]
    log_probs, frames = file(x.numpy(), np.array(lengths))
    assert frames.tolist() == [len(rows) for rows in expected]
    return max(float(np.abs(log_probs[i, : len(rows)] - rows).max()) for i, rows in enumerate(expected))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_onnx_equals_pytorch_for_any_batch_and_length(options, tmp_path):
    model = make_model(**options)
    file = write_offline(tmp_path / "model.onnx", OfflineGraph(model).eval())
    for lengths in ([101, 32, 57], [16], [17], [331, 150], [8]):
        assert largest_difference(model, file, lengths) < 1e-5


def test_normalization_is_in_the_graph_and_over_valid_frames(tmp_path):
    generator = np.random.default_rng(0)
    sums = generator.normal(3, 1, BINS) * 100
    np.savez(tmp_path / "stats.npz", count=100, sum=sums, sum_square=sums**2 / 100 + 400.0)
    for i, normalize in enumerate(
        [
            UtteranceMVN(norm_vars=True),
            UtteranceMVN(),
            UtteranceMVN(norm_means=False, norm_vars=True),
            GlobalMVN(tmp_path / "stats.npz"),
            GlobalMVN(tmp_path / "stats.npz", norm_vars=False),
        ]
    ):
        model = make_model(normalize, use_attention=False, lmu_type="parallel")
        file = write_offline(tmp_path / f"{i}.onnx", OfflineGraph(model).eval())
        assert largest_difference(model, file, [40, 13]) < 1e-5


@pytest.mark.parametrize("lmu_type", ["original", "parallel"])
def test_8_bits_are_smaller_and_near(lmu_type, tmp_path):
    import onnx
    from onnx import numpy_helper

    model = make_model(lmu_type=lmu_type, output_size=32, input_layer="dw_striding")
    graph = OfflineGraph(model).eval()
    write_offline(tmp_path / "model.onnx", graph)
    quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", graph)
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    assert largest_difference(model, OnnxFile(tmp_path / "int8.onnx"), [101, 57]) < 0.1
    if lmu_type == "original":
        # what the memory is made of is not rounded
        initializers = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer
        }
        transition = graph.encoder.layers[0].lmu.transition.numpy()
        np.testing.assert_array_equal(initializers["encoder.layers.0.lmu.transition.memory"], transition[:, 32:])
        assert initializers["encoder.layers.0.lmu.transition.quantized"].dtype == np.int8


@pytest.mark.parametrize("options", STREAMING.values(), ids=STREAMING.keys())
def test_chunks_by_onnx_equal_the_whole_by_pytorch(options, tmp_path):
    """Two streams of other lengths in one batch; chunks of the size the model trained with."""
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "stats.npz", count=1, sum=generator.normal(0, 1, BINS), sum_square=np.full(BINS, 9.0))
    model = make_model(GlobalMVN(tmp_path / "stats.npz"), **{**CAUSAL, **options})
    check_streamable(model)
    chunk = 3
    graph = StreamingGraph(OfflineGraph(model), chunk).eval()
    shift, window = graph.shift, graph.window
    state = graph.initial_state(BINS, 2)
    names = ["features", "lengths", *state]
    outputs = ["log_probs", "frames", *(f"next.{name}" for name in state)]
    example = (torch.randn(2, window, BINS), torch.full((2,), window), *state.values())
    batch = {name: {0: "batch"} for name in (*names, *outputs)}
    write_onnx(tmp_path / "step.onnx", graph, example, names, outputs, batch, {})
    step = OnnxFile(tmp_path / "step.onnx")

    lengths = torch.tensor([101, 83])
    x = torch.randn(2, 101, BINS)
    model.encoder.attention_chunk = chunk
    expected = [reference(model, x[i, :length]) for i, length in enumerate(lengths.tolist())]
    values, found, counts = [value.numpy() for value in state.values()], [], 0
    for start in range(0, 101, shift):
        part = np.zeros((2, window, BINS), np.float32)
        part[:, : min(window, 101 - start)] = x[:, start : start + window]
        log_probs, count, *following = step(part, (lengths - start).clamp(0, window).numpy(), *values)
        assert [value.shape for value in following] == [value.shape for value in values]
        values, counts = following, counts + count
        found.append(log_probs)
    assert counts.tolist() == [len(rows) for rows in expected]
    for rows, stream in zip(expected, np.concatenate(found, axis=1), strict=True):
        np.testing.assert_allclose(stream[: len(rows)], rows, rtol=0, atol=1e-5)

    alone = run_chunks(step, [value[:1].numpy() for value in state.values()], x[1:, :83].numpy(), shift, window)
    np.testing.assert_allclose(alone[0], expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bidirectional": True, **CAUSAL}, "bidirectional"),
        ({}, "attention_context"),
    ],
)
def test_what_needs_the_whole_utterance_does_not_stream(options, message):
    with pytest.raises(UserError, match=f"--streaming: .*{message}"):
        check_streamable(make_model(**options))


def test_the_scripted_cell_equals_the_layer_frame_by_frame():
    torch.manual_seed(0)
    layer = LMU(5, 8, 4, theta=6.0)
    torch.nn.init.normal_(layer.e_m)
    cell = torch.jit.script(LoopLMU(layer))
    x = torch.randn(2, 9, 5)
    expected, (h, m) = layer(x)
    state, outputs = None, []
    for t in range(9):
        y, state = cell(x[:, t : t + 1], None, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, (h, m), rtol=0, atol=1e-5)


def test_features_in_the_graph_are_those_of_espnet():
    from espnet2.asr.frontend.default import DefaultFrontend

    samples = 0.1 * torch.randn(1, 7123)
    for options in ({}, {"n_fft": 512, "win_length": 400, "hop_length": 160}, {"center": False}):
        frontend = DefaultFrontend(**options)
        features, _ = frontend(samples, torch.tensor([7123]))
        torch.testing.assert_close(espnet_log_mel(frontend)(samples), features, rtol=0, atol=2e-3)
    with pytest.raises(UserError, match="WPE"):
        espnet_log_mel(DefaultFrontend(frontend_conf={"use_wpe": True}))


def test_a_graph_of_a_waveform_does_not_mind_its_level(tmp_path):
    from espnet2.asr.frontend.default import DefaultFrontend

    torch.manual_seed(0)
    frontend = DefaultFrontend(n_fft=512, win_length=400, hop_length=160)
    encoder = draw_weights(LMUEncoder(80, **SMALL, bidirectional=True, input_layer="dw_striding")).eval()
    model = SimpleNamespace(encoder=encoder, ctc=CTC(7, 16).eval(), normalize=UtteranceMVN())
    graph = WaveGraph(espnet_log_mel(frontend), OfflineGraph(model)).eval()
    path = tmp_path / "wave.onnx"
    axes = {"samples": {1: "samples"}, "log_probs": {1: "frames"}}
    write_onnx(path, graph, (torch.randn(1, 9000),), ["samples"], ["log_probs"], axes, {})
    samples = torch.randn(1, 12345)
    features, _ = frontend(0.2 * samples, torch.tensor([12345]))
    np.testing.assert_allclose(OnnxFile(path)(samples.numpy())[0][0], reference(model, features[0]), rtol=0, atol=1e-3)


def test_a_file_that_computes_numbers_that_are_none_is_refused():
    expected = [np.zeros((3, 2)), np.zeros((2, 2))]
    check_difference("x.onnx", expected, expected)
    for found in ([expected[0] + 0.1, expected[1]], [expected[0], expected[1] * np.nan], [expected[0], expected[0]]):
        with pytest.raises(UserError, match="x.onnx: .*nothing was written"):
            check_difference("x.onnx", expected, found)
