"""`espnet-lmu params --batch_size`: the memory of a batch is what autograd keeps of it."""

import json

import pytest
import torch
from torch import nn

from espnet_lmu.bin.main import main
from espnet_lmu.encoder.activations import _count, activation_bytes
from espnet_lmu.encoder.parameters import build_encoder

SIZES = "output_size: 32, num_blocks: 3, memory_size: 16, attention_heads: 2"


@pytest.fixture
def config(tmp_path):
    def write(**options):
        path = tmp_path / "train.yaml"
        further = "".join(f", {name}: {value}" for name, value in options.items())
        path.write_text(f"encoder: lmu\nencoder_conf: {{{SIZES}{further}}}\nuse_amp: true\n")
        return path

    return write


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_context": "[64, 16]"}, {"attention_context": "[64, [2, 3, 64]]", "input_layer": "conv2d"}],
)
def test_memory_of_a_longer_batch_is_foretold(config, options):
    path = config(**options)
    encoder, _ = build_encoder(path, "cpu")
    encoder.chunks = encoder.chunks[-1:]
    output, features = nn.Linear(32, 29), torch.randn(6, 500, 80)
    *_, kept = _count(encoder.train(), output, features, mixed_precision=False)
    assert abs(activation_bytes(path, 29, 6, 500, False) / kept - 1) < 0.001


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all(config):
    full = activation_bytes(config(), 29, 4, 500, False)
    inputs = 3 * 4 * 500 * 32 * 4
    kept = activation_bytes(config(gradient_checkpointing="true"), 29, 4, 500, False)
    assert full / 3 < kept < full / 3 + inputs + 4 * 4 * 500 * (80 + 4 * 32 + 3 * 29)


def test_intermediate_ctc_keeps_its_own_scores(config):
    plain = activation_bytes(config(), 29, 4, 500, False)
    outputs_and_scores = 4 * 500 * (32 + 29) * 4
    path = config(interctc_layer_idx="[1, 2]")
    assert activation_bytes(path, 29, 4, 500, False) == plain + 2 * outputs_and_scores
    path = config(interctc_layer_idx="[1, 2]", interctc_use_conditioning="true")
    # the posteriors, which softmax and the linear layer after it keep once
    assert activation_bytes(path, 29, 4, 500, False) >= plain + 2 * (outputs_and_scores + 4 * 500 * 29 * 4)


def test_params_tells_the_memory_of_a_batch(config, capsys):
    path = str(config())
    assert main(["params", path, "--batch_size", "4", "--frames", "500", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    batch = report["batch"]
    assert batch["mixed_precision"] and not batch["gradient_checkpointing"]
    assert batch["total_gb"] == batch["activations_gb"] + report["training_memory_gb"]["total"]
    assert main(["params", path, "--batch_size", "4", "--frames", "500"]) == 0
    assert "a batch of 4 x 500 frames, mixed precision: 0.0" in capsys.readouterr().out
    assert main(["params", path, "--batch_size", "0"]) == 1
    assert capsys.readouterr().err == "error: --batch_size 0: give at least 1\n"
    path = str(config(input_layer="conv2d"))
    assert main(["params", path, "--batch_size", "2", "--frames", "5"]) == 1
    assert capsys.readouterr().err == "error: --frames 5: the input layer needs 7 at least\n"
