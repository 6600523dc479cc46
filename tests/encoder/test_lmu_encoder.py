"""LMUEncoder: shapes, padding, options, parameter counts, loading of weights."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from espnet2.asr.ctc import CTC
from weights import draw_weights

from espnet_lmu import LMUEncoder
from espnet_lmu.bin import main
from espnet_lmu.encoder import lmu_encoder
from espnet_lmu.encoder.attention import SelfAttention
from espnet_lmu.encoder.layer import FeedForward
from espnet_lmu.encoder.subsampling import INPUT_LAYERS, TooShortUttError

CONF = Path(__file__).parents[2] / "conf"
SMALL = {"output_size": 16, "num_blocks": 2, "memory_size": 6, "theta": 12.0, "attention_heads": 2}


def make_encoder(**options) -> LMUEncoder:
    torch.manual_seed(0)
    return draw_weights(LMUEncoder(20, **{**SMALL, **options})).eval()


def set_up_conditioning(encoder: LMUEncoder, vocab_size: int = 7) -> CTC:
    encoder.conditioning_layer = torch.nn.Linear(vocab_size, encoder.output_size())
    return CTC(vocab_size, encoder.output_size())


VARIANTS = {
    **{f"input={name}": {"input_layer": name} for name in INPUT_LAYERS},
    "parallel": {"lmu_type": "parallel"},
    "parallel, 3 memories": {"lmu_type": "parallel", "memory_d": 3, "linear_units": 24},
    "bidirectional": {"bidirectional": True},
    "bidirectional, parallel, dw_striding": {
        "bidirectional": True,
        "lmu_type": "parallel",
        "memory_d": 2,
        "input_layer": "dw_striding",
    },
    "no attention": {"use_attention": False},
    "euler": {"discretizer": "euler", "theta": 200.0},
}


LIMITED = {"limited attention": {"attention_context": [5, 4]}, "several chunks": {"attention_context": [5, [2, 4, 9]]}}


@pytest.mark.parametrize("options", [*VARIANTS.values(), *LIMITED.values()], ids=[*VARIANTS, *LIMITED])
def test_a_long_recording_in_pieces_is_the_recording(options, monkeypatch):
    encoder = make_encoder(**options)
    x, lengths = torch.randn(2, 131, 20), torch.tensor([131, 131])
    expected, expected_lengths, _ = encoder(x, lengths)
    monkeypatch.setattr(lmu_encoder, "_PIECE", 32)
    pieces = []
    encoder.embed.register_forward_pre_hook(lambda _, inputs: pieces.append(inputs[0].size(1)))
    with torch.inference_mode():
        out, out_lengths, states = encoder(x, lengths)
    assert len(pieces) > 1 and max(pieces) < 64
    assert states is None and out_lengths.tolist() == expected_lengths.tolist()
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=1e-5)
    # with padding, and with a gradient, all at once
    pieces.clear()
    encoder(x, lengths)
    with torch.inference_mode():
        encoder(x, torch.tensor([131, 90]))
    assert pieces == [131, 131]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_padding_changes_nothing(options):
    """Each sequence of a padded batch, whatever the padding holds, gives what it gives alone."""
    encoder = make_encoder(**options)
    lengths = torch.tensor([57, 31, 40])
    x = torch.randn(3, 63, 20)
    out, out_lengths, states = encoder(x, lengths)
    assert states is None
    assert out.shape == (3, int(out_lengths.max()), encoder.output_size())
    x_other = torch.where(torch.arange(63)[None, :, None] < lengths[:, None, None], x, torch.full_like(x, math.nan))
    other, _, _ = encoder(x_other, lengths)
    torch.testing.assert_close(other, out, rtol=0, atol=1e-5)
    # ESPnet's CER while it trains counts the tokens of padding
    for row, length in zip(out, out_lengths, strict=True):
        assert torch.equal(row[length:], row[length - 1].expand_as(row[length:]))
    for index, length in enumerate(lengths.tolist()):
        alone, alone_length, _ = encoder(x[index : index + 1, :length], lengths[index : index + 1])
        assert alone_length.item() == out_lengths[index].item() == alone.size(1)
        torch.testing.assert_close(out[index, : alone.size(1)], alone[0], rtol=1e-4, atol=1e-5)


def test_attention_starts_at_zero_and_grows():
    """A new encoder computes what one without attention does, and its attention has a gradient."""
    encoder = LMUEncoder(20, **SMALL, dropout_rate=0.0)
    without = LMUEncoder(20, **SMALL, dropout_rate=0.0, use_attention=False)
    without.load_state_dict({name: encoder.state_dict()[name] for name in without.state_dict()})
    x, lengths = torch.randn(2, 30, 20), torch.tensor([30, 21])
    torch.testing.assert_close(encoder(x, lengths)[0], without(x, lengths)[0], rtol=0, atol=0)
    encoder(x, lengths)[0].square().mean().backward()
    assert all(layer.attention.out.weight.grad.abs().max() > 0 for layer in encoder.layers)


def test_recurrence_of_a_streaming_encoder_starts_calm_and_grows():
    torch.manual_seed(0)
    options = SMALL | {"output_size": 64, "dropout_rate": 0.0}
    encoder = LMUEncoder(20, **options, attention_context=[8, 4])
    encoder(torch.randn(2, 30, 20), torch.tensor([30, 21]))[0].square().mean().backward()
    for layer in encoder.layers:
        assert 0.15 < layer.lmu.W_h.std() * 64**0.5 < 0.25
        assert layer.lmu.W_m.abs().max() == 0 < layer.lmu.W_m.grad.abs().max()
    for layer in LMUEncoder(20, **options).layers:  # as in the paper
        assert 0.8 < layer.lmu.W_h.std() * 64**0.5 < 1.2
        assert layer.lmu.W_m.abs().max() > 0


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_learns(options):
    encoder = make_encoder(**options).train()
    out, _, _ = encoder(torch.randn(2, 60, 20), torch.tensor([60, 45]))
    out.pow(2).sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@pytest.mark.parametrize("name", INPUT_LAYERS)
def test_too_short_input_is_espnets_error(name):
    encoder = make_encoder(input_layer=name)
    shortest = getattr(encoder.embed, "shortest", 1)
    out, lengths, _ = encoder(torch.randn(1, shortest, 20), torch.tensor([shortest]))
    assert out.size(1) == lengths.item() == 1
    with pytest.raises(TooShortUttError) as error:
        encoder(torch.randn(2, 40, 20), torch.tensor([40, shortest - 1]))
    assert (error.value.actual_size, error.value.limit) == (shortest - 1, shortest)


@pytest.mark.parametrize("name, factor", [("dw_striding", 4), ("dw_striding8", 8), ("conv2d", 4), ("conv2d6", 6)])
def test_subsampling_factor(name, factor):
    encoder = make_encoder(input_layer=name)
    _, lengths, _ = encoder(torch.randn(1, 960, 20), torch.tensor([960]))
    assert abs(lengths.item() - 960 / factor) <= 2


def test_input_channels():
    encoder = make_encoder(input_layer="dw_striding", input_channels=8)
    # 3x3 and bias; depthwise 3x3 and pointwise with biases; linear of a quarter of the 20 features
    assert sum(p.numel() for p in encoder.embed.parameters()) == 8 * 10 + 8 * (10 + 9) + (8 * 5 + 1) * 16
    out, _, _ = encoder(torch.randn(1, 24, 20), torch.tensor([24]))
    assert out.shape == (1, 6, 16)


def test_gradient_checkpointing_gives_the_same_gradients():
    x, lengths = torch.randn(2, 30, 20), torch.tensor([30, 22])
    gradients = []
    for checkpointing in (False, True):
        encoder = make_encoder(gradient_checkpointing=checkpointing, dropout_rate=0.0).train()
        out, _, _ = encoder(x, lengths)
        out.pow(2).sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_gradient_checkpointing_recomputes():
    calls = []
    encoder = make_encoder(gradient_checkpointing=True).train()
    encoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(0))
    encoder(torch.randn(1, 9, 20), torch.tensor([9]))[0].sum().backward()
    assert len(calls) == 2


def test_intermediate_ctc():
    plain, encoder = make_encoder(), make_encoder(interctc_layer_idx=[1])
    x, lengths = torch.randn(2, 30, 20), torch.tensor([30, 22])
    (out, intermediate), _, _ = encoder(x, lengths)
    assert [index for index, _ in intermediate] == [1]
    assert intermediate[0][1].shape == out.shape
    torch.testing.assert_close(out, plain(x, lengths)[0])
    # ESPnet counts the errors of both in the padding too, where the last frame again adds none.
    for y in (out, intermediate[0][1]):
        assert (y[1, 22:] == y[1, 21]).all() and not (y[1, 20] == y[1, 21]).any()


def test_self_conditioning_feeds_the_posteriors_back():
    encoder = make_encoder(interctc_layer_idx=[1], interctc_use_conditioning=True)
    ctc = set_up_conditioning(encoder)
    x, lengths = torch.randn(2, 30, 20), torch.tensor([30, 22])
    (out, _), _, _ = encoder(x, lengths, ctc=ctc)
    torch.nn.init.zeros_(encoder.conditioning_layer.weight)
    torch.nn.init.zeros_(encoder.conditioning_layer.bias)
    (unconditioned, _), _, _ = encoder(x, lengths, ctc=ctc)
    assert not torch.allclose(out, unconditioned)
    torch.testing.assert_close(unconditioned, make_encoder()(x, lengths)[0])


def test_all_hidden_states():
    encoder = make_encoder()
    (out, hidden), _, _ = encoder(torch.randn(1, 12, 20), torch.tensor([12]), return_all_hs=True)
    assert len(hidden) == 2
    torch.testing.assert_close(encoder.out(hidden[-1]), out)


def test_prefix_and_memory_of_the_s2t_ctc_task():
    encoder = make_encoder(use_cross_attention=True)
    x, lengths = torch.randn(2, 12, 20), torch.tensor([12, 9])
    prefix, memory = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[[True] * 5], [[True] * 2 + [False] * 3]])
    out, out_lengths, _ = encoder(x, lengths, prefix_embeds=prefix, memory=memory, memory_mask=mask)
    assert out.shape == (2, 15, 16) and out_lengths.tolist() == [15, 12]
    masked = torch.where(mask[:, 0, :, None], memory, torch.full_like(memory, 1e3))
    torch.testing.assert_close(encoder(x, lengths, prefix_embeds=prefix, memory=masked, memory_mask=mask)[0], out)
    other = encoder(x, lengths, prefix_embeds=prefix, memory=memory + 1, memory_mask=mask)[0]
    assert not torch.allclose(other, out)
    with pytest.raises(ValueError, match="use_cross_attention"):
        make_encoder()(x, lengths, memory=memory)


@pytest.mark.parametrize(
    "shape, lengths, options, message",
    [
        ((2, 12, 19), torch.tensor([12, 9]), {"input_layer": "dw_striding"}, r"shape \(B, T, 20\), got \(2, 12, 19\)"),
        ((2, 12, 20), torch.tensor([12]), {}, "expected 2 lengths"),
        ((2, 12, 20), torch.tensor([13, 9]), {}, "expected lengths from 0 to 12"),
        ((2, 12, 20), torch.tensor([12.0, 9.0]), {}, "expected lengths as a tensor of whole numbers"),
        ((2, 12, 20), [12, 9], {}, "expected lengths as a tensor of whole numbers"),
    ],
)
def test_input_that_does_not_fit_is_refused(shape, lengths, options, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**options)(torch.zeros(shape), lengths)


def test_what_streaming_does_not_do_is_refused():
    encoder, x = make_encoder(use_attention=False), torch.zeros(1, 12, 20)
    with pytest.raises(ValueError, match="returns the last layer alone"):
        encoder(x, torch.tensor([12]), infer_mode=True, return_all_hs=True)
    with pytest.raises(ValueError, match="no prefix_embeds"):
        encoder(x, torch.tensor([12]), infer_mode=True, prefix_embeds=torch.zeros(1, 2, 16))


def test_attention_sees_the_order_of_frames():
    """Rotary positions: without them, reversing the frames would only reverse the output."""
    torch.manual_seed(0)
    attention = SelfAttention(16, 2)
    x = torch.randn(1, 9, 16)
    assert not torch.allclose(attention(x.flip(1)).flip(1), attention(x), atol=1e-4)


def test_attention_depends_on_relative_positions_only():
    torch.manual_seed(0)
    attention = SelfAttention(16, 2).double()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    padded = torch.cat([torch.randn(1, 5, 16, dtype=torch.float64), x], dim=1)
    valid = (torch.arange(14) >= 5)[None]
    torch.testing.assert_close(attention(padded, valid)[:, 5:], attention(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lmu_type": "serial"}, "original, parallel"),
        ({"input_layer": "conv3d"}, "dw_striding"),
        ({"input_layer": "conv2d", "input_channels": 16}, "not conv2d"),
        ({"memory_d": 2}, "lmu_type parallel"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"input_layer": "dw_striding", "input_channels": 0}, "input_channels 0"),
        ({"output_size": "16"}, "output_size '16'"),
        ({"linear_units": -3}, "linear_units -3"),
        ({"gated_linear_units": True}, "gated_linear_units: there are none; set linear_units"),
        ({"attention_context": 64}, r"attention_context 64: give \[left, chunk\]"),
        ({"attention_context": [-5, 2], "use_attention": False}, r"attention_context \[-5, 2\]"),
        ({"attention_context": [4, 8.5]}, r"attention_context \[4, 8.5\]: .* whole numbers"),
        ({"block_size": -3}, "block_size -3 must be a whole number"),
        ({"attention_dropout_rate": 1.5}, "attention_dropout_rate 1.5"),
        ({"dropout_rate": "1e-1"}, "dropout_rate '1e-1' must be a number between 0 and 1, such as 0.1"),
        ({"bidirectional": "false"}, "bidirectional 'false' must be true or false, without quotation marks"),
        ({"memory_d": 2.0, "lmu_type": "parallel"}, "memory_d 2.0 must be a whole number"),
        ({"interctc_layer_idx": 1}, r"interctc_layer_idx 1 must be a list of layers, such as \[2\]"),
        ({"interctc_layer_idx": ["1"]}, "interctc_layer_idx '1' must be a whole number"),
        ({"interctc_use_conditioning": True}, "needs interctc_layer_idx"),
        ({"theta": [8.0, 16.0]}, "theta"),
        ({"attention_heads": 3}, "attention_heads"),
        ({"theta": -1.0}, "theta"),
        ({"memory_size": 0}, "order|memory_size"),
        ({"interctc_layer_idx": [2]}, "interctc_layer_idx"),
        ({"bidirectional": True, "output_size": 15, "attention_heads": 1, "use_attention": False}, "even"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**options)


def test_conditioning_needs_the_ctc_module():
    encoder = make_encoder(interctc_layer_idx=[1], interctc_use_conditioning=True)
    with pytest.raises(ValueError, match=r"needs the CTC layer \(ctc\)"):
        encoder(torch.randn(1, 9, 20), torch.tensor([9]))


def test_weights_of_another_model_are_refused():
    encoder = make_encoder()
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    model = torch.nn.ModuleDict({"encoder": make_encoder()})
    model.load_state_dict(state, strict=False)
    state["encoder.layers.0.lmu.W_q"] = state.pop("encoder.layers.0.lmu.W_x")
    # ESPnet loads with strict=False
    with pytest.raises(
        RuntimeError, match=r"missing: encoder\.layers\.0\.lmu\.W_x; unknown: encoder\.layers\.0\.lmu\.W_q"
    ):
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("input_layer", [name for name in INPUT_LAYERS if name.startswith("conv2d")])
def test_weights_with_the_names_of_an_older_espnet_fit(input_layer):
    encoder, other = (make_encoder(input_layer=input_layer) for _ in range(2))
    state = {name.replace("embed.embed.out.", "embed.embed.out.0."): p for name, p in encoder.state_dict().items()}
    assert state.keys() != encoder.state_dict().keys()
    torch.nn.init.zeros_(other.embed.embed.out.weight)
    other.load_state_dict(state, strict=False)
    x, lengths = torch.randn(2, 60, 20), torch.tensor([60, 50])
    assert torch.equal(encoder.eval()(x, lengths)[0], other.eval()(x, lengths)[0])


PARTS = ["input projection", "LMU layers", "attention layers", "layer normalization", "output projection", "CTC"]


@pytest.mark.parametrize(
    "size, counts, per_layer, fp32, fp16",
    [
        ("demo", [20736, 328960, 525312, 1024, 65792, 7453], (164480, 262656), 3.62, 1.81),
        ("base", [41472, 2626560, 4198400, 4096, 262656, 14877], (656640, 1049600), 27.27, 13.63),
        ("large", [82944, 15744000, 25178112, 12288, 1049600, 29725], (2624000, 4196352), 160.59, 80.29),
    ],
)
def test_published_sizes(size, counts, per_layer, fp32, fp16, capsys):
    assert main.main(["params", "--json", str(CONF / f"train_asr_lmu_{size}.yaml")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(part["name"], part["parameters"]) for part in report["parts"]] == list(zip(PARTS, counts, strict=True))
    assert (report["parts"][1]["per_layer"], report["parts"][2]["per_layer"]) == per_layer
    assert report["total"] == sum(counts)
    assert (round(report["size_mb"]["fp32"], 2), round(report["size_mb"]["fp16"], 2)) == (fp32, fp16)


def test_base_without_attention(tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text("encoder: lmu\nencoder_conf: {use_attention: false}\n")
    assert main.main(["params", str(config)]) == 0
    table = capsys.readouterr().out
    assert "2,949,661" in table and "attention" not in table


def test_base_training_memory(capsys):
    main.main(["params", "--json", str(CONF / "train_asr_lmu_base.yaml")])
    memory = {
        name: round(value, 2) for name, value in json.loads(capsys.readouterr().out)["training_memory_gb"].items()
    }
    assert memory == {
        "weights": 0.03,
        "gradients": 0.03,
        "adam_states": 0.05,
        "total": 0.11,
        "with_activations": 0.21,
        "mixed_precision": 0.09,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"lmu_type": "parallel", "memory_d": 2, "linear_units": 24, "use_cross_attention": True},
        {"bidirectional": True, "input_layer": "dw_striding", "input_channels": 8},
    ],
)
def test_params_counts_what_it_builds(tmp_path, capsys, options):
    """Options with parameters of their own are in the table: it adds up to the model ESPnet builds."""
    options = {**SMALL, **options}
    config = tmp_path / "train.yaml"
    config.write_text(f"encoder: LMU\ninput_size: 20\nencoder_conf: {json.dumps(options)}\n")
    main.main(["params", "--json", "--vocab_size", "7", str(config)])
    encoder = make_encoder(**options)
    expected = sum(p.numel() for p in [*encoder.parameters(), *CTC(7, 16).parameters()])
    assert json.loads(capsys.readouterr().out)["total"] == expected


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "No such file"),
        ("encoder: conformer\n", "needs `encoder: lmu`, found encoder 'conformer'"),
        ("encoder: [lmu\n", "not valid YAML"),
        ("encoder: lmu\nencoder_conf: {memory_sise: 3}\n", "unexpected option 'memory_sise'"),
        ("encoder: lmu\nencoder_conf: {lmu_type: serial}\n", "lmu_type 'serial' is unknown"),
        ("encoder: lmu\nencoder_conf: [512]\n", "encoder_conf: expected lines"),
        ("encoder: lmu\nfrontend_conf: 16k\n", "frontend_conf: expected lines"),
        ("encoder: lmu\nfrontend_conf: {n_mels: null}\n", "input_size or n_mels None: expected a whole number"),
    ],
)
def test_params_names_the_wrong_file(text, message, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    if text is not None:
        config.write_text(text)
    assert main.main(["params", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {config}: ") and message in error and error.count("\n") == 1


def test_help_needs_no_heavy_import():
    code = "import sys; from espnet_lmu.bin import main\ntry: main.main(['-h'])\nfinally: print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "params" in run.stdout and run.stdout.endswith("False\n")


def test_gated_units_are_multiplied_by_their_gates():
    torch.manual_seed(0)
    module, x = FeedForward(6, 5, gated=True, dropout_rate=0.0), torch.randn(2, 3, 6)
    norm, both, _, _, last = module
    gate, units = norm(x) @ both.weight.T[:, :5] + both.bias[:5], norm(x) @ both.weight.T[:, 5:] + both.bias[5:]
    expected = (gate * gate.sigmoid() * units) @ last.weight.T + last.bias
    torch.testing.assert_close(module(x), expected)
    assert sum(p.numel() for p in module.parameters()) == 3 * 6 * 5 + 2 * 5 + 3 * 6
