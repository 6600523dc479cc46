"""Exported models in the package sherpa-onnx: its features, the tokens of greedy decoding, the check, error lines."""

import json
import os

import numpy as np
import pytest
import torch

from espnet_lmu.bin.main import main
from espnet_lmu.data.audio import read_audio
from espnet_lmu.data.format import fbank, feature_settings
from espnet_lmu.decoding.greedy import GreedyDecoder, best_path
from espnet_lmu.errors import UserError
from espnet_lmu.export import sherpa
from espnet_lmu.export.check import reference
from espnet_lmu.export.streaming import Zipformer2Graph
from espnet_lmu.scoring.error_rate import score, split_words

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sherpa_onnx")

from espnet_lmu.export.onnx_files import write_onnx  # noqa: E402

# What `Spelling` makes of a number: two digits to the base 256, of steps of 1/2048 above -20.
BASE, STEP, LOWEST = 256, 1 / 2048, -20.0


class Spelling(torch.nn.Module):
    """Writes features as tokens, each number as two and a blank after each; streams as a `StreamingGraph` does."""

    shift, window = 12, 15

    def initial_state(self, input_size: int, batch: int = 1) -> dict[str, torch.Tensor]:
        return {"position": torch.zeros(batch, dtype=torch.int64), "nothing": torch.zeros(batch, 1)}

    def forward(self, x, lengths, *state):
        steps = ((x - LOWEST) / STEP).round().clamp(0, BASE**2 - 1)
        high = (steps / BASE).floor()
        digits = torch.stack([high, steps - BASE * high], dim=-1) + 1
        tokens = torch.stack([digits, torch.zeros_like(digits)], dim=-1)
        if state:
            tokens = tokens[:, : self.shift]
        log_probs = (tokens.flatten(1)[:, :, None] == torch.arange(BASE + 1.0)).float()
        return log_probs, lengths * 4 * x.size(2), *state


def read_spelling(tokens: list[str]) -> np.ndarray:
    digits = np.array([int(token) for token in tokens]).reshape(-1, 80, 2)
    return (digits[:, :, 0] * BASE + digits[:, :, 1]) * STEP + LOWEST


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """tokens.txt of `Spelling`."""
    path = tmp_path_factory.mktemp("digits") / "tokens.txt"
    path.write_text("<blank> 0\n" + "".join(f"{i} {i + 1}\n" for i in range(BASE)))
    return path


def write_online(path, online: Zipformer2Graph, metadata: dict) -> None:
    inputs = (torch.zeros(1, online.step.window, 80), *online.initial_state().values())
    names, outputs = ([f"{kind}{i}" for i in range(len(inputs))] for kind in ("input", "output"))
    batch = {name: {1 if 0 < i < 5 else 0: "N"} for i, name in enumerate(names)}
    write_onnx(path, online, inputs, names, outputs, batch, metadata)


# Both compute in float32; a number that is spelled is off by up to 0.0003.
FEATURE_TOLERANCE = 2e-3


@pytest.mark.parametrize("rate", [16000, 8000])
def test_sherpa_onnx_computes_the_features_of_the_recipes(rate, digits, small_models, tmp_path):
    """A release of it that computes others is not one that these models may be given to."""
    recordings = {str(seconds): small_models.make_audio(seconds, seed=3) for seconds in (0.31, 0.4049, 0.2)}
    write_onnx(
        tmp_path / "offline.onnx",
        Spelling(),
        (torch.zeros(2, 7, 80), torch.tensor([7, 5])),
        ["x", "lengths"],
        ["log_probs", "counts"],
        {"x": {0: "N", 1: "T"}, "lengths": {0: "N"}, "log_probs": {0: "N", 1: "S"}, "counts": {0: "N"}},
        {},
    )
    found = sherpa.recognize(tmp_path / "offline.onnx", digits, recordings, rate, sherpa.OFFLINE, batch=3)
    for key, samples in recordings.items():
        expected = fbank(samples, rate)
        features = read_spelling(found[key].tokens)
        assert features.shape == expected.shape
        np.testing.assert_allclose(features, expected, rtol=0, atol=FEATURE_TOLERANCE)

    online = Zipformer2Graph(Spelling(), 80)
    write_online(tmp_path / "online.onnx", online, online.metadata())
    silence = online.step.window * rate // 100
    family = sherpa.online(silence)
    found = sherpa.recognize(tmp_path / "online.onnx", digits, recordings, rate, family, batch=3)
    for key, samples in recordings.items():
        expected = fbank(np.concatenate([samples, np.zeros(silence, np.float32)]), rate)
        features = read_spelling(found[key].tokens)
        assert len(fbank(samples, rate)) <= len(features) < len(expected)  # all of the recording, in whole chunks
        np.testing.assert_allclose(features, expected[: len(features)], rtol=0, atol=FEATURE_TOLERANCE)


def greedy_tokens(decoder: GreedyDecoder, log_probs: np.ndarray) -> list[str]:
    """Tokens of the best path, spelled as sherpa-onnx does."""
    ids, _ = best_path(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]))[0]
    return [{"<space>": " "}.get(token, token) for token in decoder.converter.ids2tokens(ids)]


def check_nearly(found: dict[str, sherpa.Recognized], expected: dict[str, list[str]]) -> None:
    """With 8-bit weights a random model, which is never sure, takes some other tokens."""
    texts = [
        {key: " ".join(token.replace(" ", "▁") for token in tokens) for key, tokens in spelled.items()}
        for spelled in (expected, {key: result.tokens for key, result in found.items()})
    ]
    total, _ = score(*texts, split_words)
    assert total.units > 5 and total.rate < 35


@pytest.fixture(scope="module")
def recordings(data_dir):
    return {path.stem: read_audio(str(path))[0] for path in sorted(data_dir.glob("*.wav"))}


def test_whole_recordings(whole_model, data_dir, recordings, table, small_models, tmp_path, capsys):
    output, rate = tmp_path / "out", small_models.RATE
    assert main(["export", str(whole_model), "--output", str(output), "--int8", "--check", str(data_dir)]) == 0
    assert set(os.listdir(output)) == {"model.onnx", "model.int8.onnx", "tokens.txt", "export.json"}
    printed = capsys.readouterr().out
    assert "model.onnx: at most " in printed
    call = "sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(model=..., tokens=..., sample_rate=16000)\n"
    assert f"model.onnx, model.int8.onnx: {call}" in printed
    rows = table(printed)
    for name in ("PyTorch", "model.onnx", "model.onnx in sherpa-onnx"):
        assert rows[name][-1] == "0 of 4" and rows[name][2] == rows["PyTorch"][2], rows
    assert "model.int8.onnx in sherpa-onnx" in rows
    metadata = {entry.key: entry.value for entry in onnx.load(output / "model.onnx").metadata_props}
    assert json.loads(metadata["features"]) == feature_settings(rate)
    lines = [line.split() for line in (output / "tokens.txt").read_text().splitlines()]
    assert lines[0] == ["<blank>", "0"] and ["▁", "2"] in lines and len(lines) == len(small_models.LETTERS)

    decoder = GreedyDecoder(whole_model / "config.yaml", whole_model / "valid.loss.ave.pth")
    features = {key: fbank(samples, rate) for key, samples in recordings.items()}
    expected = {
        key: greedy_tokens(decoder, reference(decoder.model, torch.from_numpy(features[key]))) for key in features
    }
    tokens = output / "tokens.txt"
    for batch in (1, 3):
        found = sherpa.recognize(output / "model.onnx", tokens, recordings, rate, sherpa.OFFLINE, batch)
        assert {key: result.tokens for key, result in found.items()} == expected
    check_nearly(sherpa.recognize(output / "model.int8.onnx", tokens, recordings, rate, sherpa.OFFLINE), expected)


@pytest.mark.parametrize(
    ("encoder_options", "ahead"), [({}, 0), ({"input_layer": "conv2d", "lmu_type": "parallel"}, 3)]
)
def test_recordings_that_arrive_in_pieces(
    encoder_options, ahead, data_dir, recordings, table, small_models, tmp_path, capsys
):
    model = small_models.write_model(tmp_path / "model", encoder_options, input_size=80)[0].parent
    output, rate, chunk = tmp_path / "out", small_models.RATE, 4
    arguments = ["--streaming", "--chunk", str(chunk), "--int8", "--check", str(data_dir)]
    assert main(["export", str(model), "--output", str(output), *arguments]) == 0
    names = {"streaming.onnx", "streaming.int8.onnx", "sherpa_streaming.onnx", "sherpa_streaming.int8.onnx"}
    assert set(os.listdir(output)) == names | {"tokens.txt", "export.json"}
    printed = capsys.readouterr().out
    assert "sherpa_streaming.onnx: at most " in printed
    shift = 4 * chunk
    window = shift + ahead
    silence = window * rate // 100
    call = "sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(model=..., tokens=..., sample_rate=16000)"
    assert f"{call}; after the recording, {silence} samples of silence" in printed
    rows = table(printed)
    assert rows["streaming.onnx"][-1] == "0 of 4"
    assert "sherpa_streaming.onnx in sherpa-onnx" in rows and "sherpa_streaming.int8.onnx in sherpa-onnx" in rows

    decoder = GreedyDecoder(model / "config.yaml", model / "valid.loss.ave.pth")
    decoder.model.encoder.attention_chunk = chunk
    expected = {}
    for key, samples in recordings.items():
        features = fbank(np.concatenate([samples, np.zeros(silence, np.float32)]), rate)
        last = (len(features) - window - 1) // shift * shift  # start of the last chunk with a frame after it
        log_probs = reference(decoder.model, torch.from_numpy(features[: last + window]))
        assert len(log_probs) >= len(reference(decoder.model, torch.from_numpy(fbank(samples, rate))))
        expected[key] = greedy_tokens(decoder, log_probs)
    family, tokens = sherpa.online(silence), output / "tokens.txt"
    for batch in (1, 3):
        found = sherpa.recognize(output / "sherpa_streaming.onnx", tokens, recordings, rate, family, batch)
        assert {key: result.tokens for key, result in found.items()} == expected
    check_nearly(sherpa.recognize(output / "sherpa_streaming.int8.onnx", tokens, recordings, rate, family), expected)


def test_models_of_audio_run_on_waveforms(whole_model_of_audio, data_dir, table, small_models, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--output", str(output), "--int8", "--check", str(data_dir)]
    assert main(["export", str(whole_model_of_audio), *arguments]) == 0
    files = {"model.onnx", "model.int8.onnx", "sherpa.onnx", "sherpa.int8.onnx", "tokens.txt", "export.json"}
    assert set(os.listdir(output)) == files
    printed = capsys.readouterr().out
    assert "sherpa.onnx: at most " in printed
    call = "sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(model=..., tokens=...)\n"
    assert f"sherpa.onnx, sherpa.int8.onnx: {call}" in printed
    rows = table(printed)
    for name in ("PyTorch", "model.onnx", "sherpa.onnx", "sherpa.onnx in sherpa-onnx"):
        assert rows[name][-1] == "0 of 4" and rows[name][2] == rows["PyTorch"][2], rows
    assert "sherpa.int8.onnx in sherpa-onnx" in rows and "model.onnx in sherpa-onnx" not in rows


def test_models_of_audio_that_sherpa_onnx_cannot_feed(small_models, tmp_path, capsys):
    model = small_models.write_model(tmp_path / "model", frontend_conf={"n_fft": 512, "hop_length": 160})[0].parent
    assert main(["export", str(model), "--output", str(tmp_path / "out")]) == 0
    assert "sherpa.onnx: not written: sherpa-onnx changes the level of audio" in capsys.readouterr().out
    assert set(os.listdir(tmp_path / "out")) == {"model.onnx", "tokens.txt", "export.json"}
    assert main(["export", str(model), "--output", str(tmp_path / "out"), "--streaming"]) == 0
    assert "sherpa_streaming.onnx: not written: sherpa-onnx streams filterbanks" in capsys.readouterr().out
    assert set(os.listdir(tmp_path / "out")) == {"model.onnx", "streaming.onnx", "tokens.txt", "export.json"}


def test_without_audio_sherpa_onnx_is_not_tried(causal_model, recordings, small_models, tmp_path, capsys):
    import kaldiio

    features = {key: fbank(samples, small_models.RATE) for key, samples in recordings.items()}
    kaldiio.save_ark(str(tmp_path / "feats.ark"), features, scp=str(tmp_path / "feats.scp"))
    (tmp_path / "text").write_text("".join(f"{key} A BAD CAB\n" for key in features))
    assert main(["export", str(causal_model), "--output", str(tmp_path / "out"), "--check", str(tmp_path)]) == 0
    assert f"{tmp_path}: features, but no audio for sherpa-onnx: not tried" in capsys.readouterr().out


@pytest.mark.parametrize("family", [sherpa.OFFLINE, sherpa.WAVE, sherpa.online(1600)], ids=lambda f: f.constructor)
def test_a_file_that_sherpa_onnx_refuses_is_an_error(family, tmp_path):
    (tmp_path / "tokens.txt").write_text("<blank> 0\n")
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(UserError, match="bad.onnx: sherpa-onnx refuses it"):
        sherpa.recognize(
            tmp_path / "bad.onnx", tmp_path / "tokens.txt", {"a": np.zeros(9000, np.float32)}, 16000, family
        )


def test_a_file_that_ends_sherpa_onnx_is_an_error(digits, tmp_path):
    """Without the sizes of its state in the metadata."""
    write_online(tmp_path / "online.onnx", Zipformer2Graph(Spelling(), 80), {})
    with pytest.raises(UserError, match="online.onnx: sherpa-onnx refuses it or tokens.txt"):
        sherpa.recognize(
            tmp_path / "online.onnx", digits, {"a": np.zeros(9000, np.float32)}, 16000, sherpa.online(1600)
        )
