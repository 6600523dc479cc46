"""`espnet-lmu export`: files, their check on a data directory, sherpa-onnx, error lines."""

import os

import numpy as np
import pytest
import soundfile

from espnet_lmu.bin.main import main
from espnet_lmu.data.kaldi_dir import write_table
from espnet_lmu.export import check

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WHOLE = {"bidirectional": True, "attention_context": None}
UTTERANCE_MVN = {"normalize": "utterance_mvn", "normalize_conf": {}}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, small_models):
    """Utterances of several lengths, and words that are not what they say."""
    directory = tmp_path_factory.mktemp("data")
    seconds = {"a": 1.3, "b": 0.7, "c": 2.9, "d": 1.01}
    for i, (key, duration) in enumerate(seconds.items()):
        # With noise: digital silence lies at the features' floor, whose distance to speech depends on the level.
        noise = np.random.default_rng(i).standard_normal(round(duration * small_models.RATE))
        samples = 0.9 * small_models.make_audio(duration, seed=i) + 0.003 * noise
        soundfile.write(directory / f"{key}.wav", samples, small_models.RATE, subtype="PCM_16")
    write_table(directory / "wav.scp", {key: str(directory / f"{key}.wav") for key in seconds})
    write_table(directory / "text", {key: "A BAD CAB" for key in seconds})
    return directory


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory, small_models):
    """Both directions, all frames, features of stage 3."""
    folder = tmp_path_factory.mktemp("whole")
    return small_models.write_model(folder, WHOLE, input_size=80, **UTTERANCE_MVN)[0].parent


@pytest.fixture(scope="module")
def causal_model(tmp_path_factory, small_models):
    return small_models.write_model(tmp_path_factory.mktemp("causal"), input_size=80)[0].parent


def table(output: str) -> dict[str, list[str]]:
    """Rows of the printed table by their first cell."""
    rows = [line.strip("|").split("|") for line in output.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows[2:]}


def error_line(capsys, *arguments) -> str:
    assert main(["export", *map(str, arguments)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ")
    return error[0]


@pytest.mark.parametrize("feats_type", ["fbank", "raw"])
def test_sherpa_onnx_writes_the_text_of_greedy_decoding(
    feats_type, whole_model, data_dir, small_models, tmp_path, capsys
):
    pytest.importorskip("sherpa_onnx")
    if feats_type == "raw":
        frontend = {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160}
        whole_model = small_models.write_model(tmp_path / "raw", WHOLE, frontend_conf=frontend, **UTTERANCE_MVN)[
            0
        ].parent
    output = tmp_path / "out"
    assert main(["export", str(whole_model), "--output", str(output), "--int8", "--check", str(data_dir)]) == 0
    printed = capsys.readouterr().out
    assert "model.onnx: at most " in printed and "sherpa.onnx: at most " in printed
    rows = table(printed)
    assert set(os.listdir(output)) == {
        "model.onnx",
        "model.int8.onnx",
        "sherpa.onnx",
        "sherpa.int8.onnx",
        "tokens.txt",
    }
    for name in ("PyTorch", "model.onnx", "sherpa.onnx", "sherpa.onnx in sherpa-onnx"):
        assert rows[name][-1] == "0 of 4", rows
        assert rows[name][2] == rows["PyTorch"][2]
    assert "sherpa.int8.onnx in sherpa-onnx" in rows
    tokens = [line.split() for line in (output / "tokens.txt").read_text().splitlines()]
    assert tokens[0] == ["<blank>", "0"] and ["▁", "2"] in tokens and len(tokens) == len(small_models.LETTERS)


def test_streaming_and_torchscript(causal_model, data_dir, tmp_path, capsys):
    import torch

    arguments = ["export", str(causal_model), "--check", str(data_dir), "--output"]
    assert main([*arguments, str(tmp_path / "onnx"), "--streaming", "--chunk", "4", "--int8"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["streaming.onnx"][-1] == "0 of 4" and "streaming.int8.onnx" in rows
    assert main([*arguments, str(tmp_path / "script"), "--streaming", "--format", "torchscript"]) == 0
    assert table(capsys.readouterr().out)["streaming.pt"][-1] == "0 of 4"
    assert main([*arguments, str(tmp_path / "script"), "--format", "torchscript"]) == 0
    assert table(capsys.readouterr().out)["model.pt"][-1] == "0 of 4"
    assert set(os.listdir(tmp_path / "script")) == {"streaming.pt", "model.pt", "tokens.txt"}
    log_probs, frames = torch.jit.load(tmp_path / "script" / "model.pt")(torch.randn(1, 203, 80), torch.tensor([203]))
    assert log_probs.shape[1] == frames.item() == 51

    assert main(["export", str(causal_model), "--output", str(tmp_path / "whole")]) == 0
    assert "sherpa.onnx: not written: " in capsys.readouterr().out
    assert set(os.listdir(tmp_path / "whole")) == {"model.onnx", "tokens.txt"}


def test_errors_are_one_line_and_leave_nothing(whole_model, causal_model, data_dir, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    to = ("--output", output)
    assert "--int8: needs --format onnx" in error_line(capsys, whole_model, *to, "--int8", "--format", "torchscript")
    assert "--chunk: needs --streaming" in error_line(capsys, whole_model, *to, "--chunk", 4)
    assert "no data directory" in error_line(capsys, whole_model, *to, "--check", tmp_path)
    assert "no such file" in error_line(capsys, tmp_path / "none", *to)
    assert "utterance_mvn" in error_line(capsys, whole_model, *to, "--streaming")
    assert "--chunk 0: give at least 1" in error_line(capsys, causal_model, *to, "--streaming", "--chunk", 0)
    (tmp_path / "file").write_text("")
    assert "a file; give a folder" in error_line(capsys, whole_model, "--output", tmp_path / "file")
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    assert "differs from PyTorch by" in error_line(capsys, causal_model, *to)
    assert not output.exists()


def test_a_file_that_sherpa_onnx_refuses_is_an_error(tmp_path):
    pytest.importorskip("sherpa_onnx")
    from espnet_lmu.errors import UserError
    from espnet_lmu.export import sherpa

    (tmp_path / "tokens.txt").write_text("a 0\n")
    with pytest.raises(UserError, match="none.onnx: sherpa-onnx refuses it: "):
        sherpa.recognize(tmp_path / "none.onnx", tmp_path / "tokens.txt", {"a": np.zeros(16000, np.float32)}, 16000)
