"""`espnet-lmu export`: files, their check on a data directory, error lines."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from espnet_lmu.bin.main import main
from espnet_lmu.data.features import write_features
from espnet_lmu.data.format import feature_settings
from espnet_lmu.errors import UserError
from espnet_lmu.export import check
from espnet_lmu.export.export import _move

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def error_line(capsys, *arguments) -> str:
    assert main(["export", *map(str, arguments)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ")
    return error[0]


def test_streaming_and_torchscript(causal_model, data_dir, table, tmp_path, capsys):
    import torch

    arguments = ["export", str(causal_model), "--check", str(data_dir), "--output"]
    assert main([*arguments, str(tmp_path / "onnx"), "--streaming", "--chunk", "4", "--int8"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["streaming.onnx"][-1] == "0 of 4" and "streaming.int8.onnx" in rows
    assert main([*arguments, str(tmp_path / "script"), "--streaming", "--format", "torchscript"]) == 0
    assert table(capsys.readouterr().out)["streaming.pt"][-1] == "0 of 4"
    assert main([*arguments, str(tmp_path / "script"), "--format", "torchscript"]) == 0
    assert table(capsys.readouterr().out)["model.pt"][-1] == "0 of 4"
    assert set(os.listdir(tmp_path / "script")) == {"streaming.pt", "model.pt", "tokens.txt", "export.json"}
    log_probs, frames = torch.jit.load(tmp_path / "script" / "model.pt")(torch.randn(1, 203, 80), torch.tensor([203]))
    assert log_probs.shape[1] == frames.item() == 51


def test_files_of_another_model_do_not_stay(tmp_path):
    output, weights = tmp_path / "out", tmp_path / "model.pth"
    output.mkdir()

    def export(model: str, *names: str) -> set[str]:
        weights.write_text(model)
        made = tmp_path / "made"
        made.mkdir()
        for name in names:
            (made / name).write_text(model)
        assert _move(made, output, weights) == sorted(names)
        made.rmdir()
        return {path.name for path in output.iterdir() if path.read_text() == model}

    (output / "notes.txt").write_text("of the user")
    onnx = {"model.onnx", "model.int8.onnx", "tokens.txt"}
    assert export("one", *onnx) == onnx
    assert export("one", "model.pt", "tokens.txt") == {*onnx, "model.pt"}
    assert export("two", "model.onnx", "tokens.txt") == {"model.onnx", "tokens.txt"}
    assert set(os.listdir(output)) == {"model.onnx", "tokens.txt", "notes.txt", "export.json"}
    # What it has not written it does not replace, and a file of 8 bits goes with the one it was made of.
    with pytest.raises(UserError, match="out: notes.txt is there, and no export wrote it; give another --output"):
        export("two", "model.onnx", "notes.txt")
    shutil.rmtree(tmp_path / "made")
    assert (output / "notes.txt").read_text() == "of the user" and (output / "model.onnx").read_text() == "two"
    export("two", "streaming.onnx", "streaming.int8.onnx")
    assert export("two", "streaming.onnx") == {"model.onnx", "tokens.txt", "streaming.onnx"}
    assert not (output / "streaming.int8.onnx").exists()
    (output / "export.json").write_text("{}")
    with pytest.raises(UserError, match="export.json: not what an export writes; give another --output"):
        export("two", "model.pt")


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
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "meta.yaml").touch()
    assert "holds a packed model" in error_line(capsys, whole_model, "--output", tmp_path / "packed")
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    assert "differs from PyTorch by" in error_line(capsys, causal_model, *to)
    assert not output.exists()


def test_stored_features_of_another_kind_are_refused(tmp_path):
    write_features(tmp_path, feature_settings(8000))
    for name, content in {"text": "a LOW\n", "feats.scp": "a feats.ark:3\n"}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="rate 16000 there and 8000 here"):
        check.read_utterances(tmp_path, SimpleNamespace(input_size=80), 16000)


def test_utterances_may_be_parts_of_recordings(tmp_path):
    soundfile.write(tmp_path / "rec.wav", np.arange(16000) / 16000, 8000, subtype="FLOAT")
    for name, content in {
        "wav.scp": f"rec {tmp_path}/rec.wav\n",
        "segments": "a rec 0.0 0.5\nb rec 1.0 2.0\n",
        "text": "a LOW\nb HIGH\n",
    }.items():
        (tmp_path / name).write_text(content)
    utterances = check.read_utterances(tmp_path, SimpleNamespace(input_size=80), 8000)
    assert {key: len(utterance.samples) for key, utterance in utterances.items()} == {"a": 4000, "b": 8000}
    assert utterances["b"].samples[0] == 0.5


def test_texts_unlike_those_of_pytorch_are_shown():
    decoder = SimpleNamespace(text=lambda ids: " ".join("_ab"[i] for i in ids), sos_eos=3)
    sure, unsure, other = [[-9.0, 0.0, -9.0]], [[-9.0, -0.7, -0.6]], [[-9.0, -0.5, -0.8]]
    utterances = {"u1": check.Utterance(None, None, "a"), "u2": check.Utterance(None, None, "b")}

    def candidate(name, **log_probs):
        rows = iter(log_probs.values())
        return check.Candidate(name, 0, lambda utterance: np.array(next(rows), np.float32))

    pytorch, changed = candidate("PyTorch", u1=sure, u2=unsure), candidate("int8", u1=sure, u2=other)
    check.compare(utterances, decoder, [pytorch, changed])
    assert check.describe_unlike(changed, pytorch) == ['int8: u2: "a", PyTorch: "b" (ahead by 0.1)']
    assert check.describe_unlike(pytorch, pytorch) == []
    assert check.row(changed, pytorch, utterances).endswith("|50.0|1 of 2|")
