"""Greedy CTC: the best path, settings, and weights that must be the model's. The decoder itself: test_recipe.py."""

import sys
from types import SimpleNamespace

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.decoding.greedy import best_path, load_input
from espnet_lmu.decoding.model import check_parameters
from espnet_lmu.decoding.search import _check_ctc_weight, decode_beam
from espnet_lmu.decoding.settings import read_settings
from espnet_lmu.errors import UserError


def collapse(path: list[int]) -> list[int]:
    """The definition: merge repetitions, then remove blanks (0)."""
    return [token for i, token in enumerate(path) if token != 0 and (i == 0 or path[i - 1] != token)]


def test_best_path_follows_the_definition_and_ignores_padding():
    torch.manual_seed(0)
    log_probs = torch.randn(6, 25, 4).log_softmax(-1)
    lengths = torch.tensor([25, 24, 13, 2, 1, 0])
    for (tokens, total), frames, length in zip(best_path(log_probs, lengths), log_probs, lengths, strict=True):
        valid = frames[:length]
        assert tokens == collapse(valid.argmax(-1).tolist())
        assert np.isclose(total, valid.max(-1).values.sum() if length else 0.0, atol=1e-4)


def test_repeated_token_needs_a_blank_between():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0]])
    log_probs = torch.nn.functional.one_hot(path, 3).float().log_softmax(-1)
    assert best_path(log_probs, torch.tensor([7]))[0][0] == [1, 1, 2]


def test_weights_of_another_model_are_refused_by_name():
    expected = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    check_parameters(expected, dict(expected), "x.pth")
    for found, message in (
        ({"a.weight": torch.zeros(2, 3)}, "missing a.bias"),
        ({**expected, "b": torch.zeros(1)}, "unknown b"),
        ({**expected, "a.bias": torch.zeros(5)}, r"other shapes: a.bias \(5,\) instead of \(2,\)"),
    ):
        with pytest.raises(UserError, match=f"x.pth: not the weights of the configured model: {message}"):
            check_parameters(expected, found, "x.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decoding: greedy\nbeam_size: 3\n", "greedy decoding has no setting beam_size"),
        ("decoding: best\n", "decoding: best: give greedy"),
        ("decoding: greedy\nbatch_size: 0\n", "batch_size: 0: give a whole number"),
        ("decoding: ctc_beam\nbeam: 3\n", "ctc_beam decoding has no setting beam; it has batch_size, beam_size"),
        ("decoding: ctc_beam\nbeam_size: many\n", "beam_size: many: give a whole number of hypotheses"),
        ("decoding: ctc_beam\nbeam_threshold: 0\n", "beam_threshold: 0: give a positive number"),
        ("decoding: ctc_beam\nngram: char\n", "ngram: char: give token, or word"),
        ("decoding: ctc_beam\nlm_weight: 1.0\n", "lm_weight: without ngram: token or word there is no language model"),
        ("decoding: ctc_beam\nngram: token\nlm_weight: [1, -1]\n", r"lm_weight: \[1, -1\]: give a number from 0 on"),
        ("decoding: ctc_beam\ninsertion_score: 1e0\n", "insertion_score: 1e0: give a number, or a list"),
        ("ctc_weight: 1.0\nlm_weight: [0.1, 0.2]\n", "lm_weight: ESPnet's search takes one number"),
        ("- greedy\n", "expected lines of NAME: VALUE"),
        ("decoding: [\n", "cannot be read"),
    ],
)
def test_decoding_settings_are_checked(tmp_path, text, message):
    path = tmp_path / "decode.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"decode.yaml: {message}"):
        read_settings(path)


def test_settings_of_the_prefix_beam_search_have_defaults_and_ascending_lists(tmp_path):
    (tmp_path / "beam.yaml").write_text("decoding: ctc_beam\nngram: word\nlm_weight: [2, 0.5]\nbeam_size: 7\n")
    settings = read_settings(tmp_path / "beam.yaml")
    assert (settings["lm_weight"], settings["insertion_score"]) == ([0.5, 2.0], [0.0])
    assert (settings["beam_size"], settings["beam_size_token"], settings["batch_size"]) == (7, None, 16)


def test_greedy_is_the_default_and_search_needs_no_key(tmp_path):
    assert read_settings(None)["decoding"] == "greedy"
    (tmp_path / "beam.yaml").write_text("beam_size: 10\nctc_weight: 1.0\n")
    assert "decoding" not in read_settings(tmp_path / "beam.yaml")


def test_search_with_a_weight_for_the_decoder_that_a_ctc_model_lacks_is_refused():
    ctc_only = {"decoder": None, "model_conf": {"ctc_weight": 1.0}}
    _check_ctc_weight(ctc_only, {"ctc_weight": 1.0}, [])
    _check_ctc_weight(ctc_only, {}, ["--ctc_weight", "0.3", "--ctc_weight", "1.0"])
    _check_ctc_weight({"decoder": "transformer", "model_conf": {"ctc_weight": 0.3}}, {}, [])
    for settings, arguments in (({}, []), ({"ctc_weight": 1.0}, ["--ctc_weight", "0.5"])):
        with pytest.raises(UserError, match="this model has CTC only"):
            _check_ctc_weight(ctc_only, settings, arguments)


def test_input_that_the_model_was_not_trained_on_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    waveform_model = SimpleNamespace(input_size=None, fs=16000)
    with pytest.raises(UserError, match="a.wav: sampling rate 8000 Hz, but the model was trained on 16000 Hz"):
        load_input(str(tmp_path / "a.wav"), waveform_model)
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/f.ark,{tmp_path}/f.scp") as writer:
        writer("u", np.ones((5, 40), dtype=np.float32))
    path = read_table(tmp_path / "f.scp")["u"]
    assert load_input(path, SimpleNamespace(input_size=40)).shape == (5, 40)
    with pytest.raises(UserError, match=r"features \(5, 40\), but the model takes 80"):
        load_input(path, SimpleNamespace(input_size=80))
    with pytest.raises(UserError, match="nowhere.ark:3: features cannot be read"):
        load_input(str(tmp_path / "nowhere.ark:3"), SimpleNamespace(input_size=80))


def test_failed_search_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    write_table(tmp_path / "wav.scp", {"u": "u.wav"})
    write_table(tmp_path / "utt2num_samples", {"u": "16000"})
    (tmp_path / "config.yaml").write_text("decoder: transformer\n")
    arguments = (tmp_path, tmp_path / "config.yaml", tmp_path / "x.pth", tmp_path / "out", None, "", 1, 0)
    with pytest.raises(UserError, match=r"asr_inference failed: .*\(log: .*asr_inference.1.log\)"):
        decode_beam(*arguments)
