"""Greedy CTC: the best path, settings, and weights that must be the model's. The decoder itself: test_recipe.py."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.decoding.decode import _make_decoder
from espnet_lmu.decoding.greedy import best_path, load_input
from espnet_lmu.decoding.model import check_parameters
from espnet_lmu.decoding.results import FILES, Hypothesis
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
    _check_ctc_weight(ctc_only, {}, ["--beam_size", "3", "--ctc_weight=1"])
    one = {"ctc_weight": 1.0}
    for settings, arguments in (
        ({}, []),
        ({"ctc_weight": None}, []),
        *((one, given) for given in (["--ctc_weight", "0.5"], ["--ctc_weight=0.5"], ["--ctc_w", "0.5"])),
        *((one, given) for given in (["--ctc_weight", "abc"], ["--ctc_weight"])),
    ):
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


class FakeSearch:
    """In place of ESPnet's asr_inference, whose import takes 13 s: same arguments, same files.

    A line of `calls` has the utterances of a call; while the file `broken` exists, the call that has u5 fails.
    """

    def __init__(self, directory):
        self.directory, self.broken = directory, directory / "broken"

    def get_parser(self):
        parser = argparse.ArgumentParser()
        for name in ("ngpu", "data_path_and_name_and_type", "asr_train_config", "asr_model_file", "config"):
            parser.add_argument(f"--{name}", required=True)
        for name in ("key_file", "output_dir", "beam_size"):
            parser.add_argument(f"--{name}")
        return parser

    def main(self, cmd):
        args = self.get_parser().parse_args(cmd)
        keys = read_table(args.key_file)
        with open(self.directory / "calls", "a") as stream:
            stream.write(" ".join(keys) + "\n")
        if "u5" in keys and self.broken.exists():
            raise RuntimeError("out of luck")
        for name in FILES:
            values = {key: f"{name} of {key}, beam {args.beam_size}" for key in keys}
            write_table(Path(args.output_dir) / "1best_recog" / name, values)

    def calls(self):
        return sorted((self.directory / "calls").read_text().splitlines())


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A fake search, with 10 utterances, one of them too short, in ``raw/test`` and a model of no weights."""
    import espnet2.bin

    fake = FakeSearch(tmp_path)
    monkeypatch.setattr(espnet2.bin, "asr_inference", fake, raising=False)
    lengths = {f"u{i}": "16000" for i in range(9)} | {"short": "100"}
    write_table(tmp_path / "raw" / "test" / "wav.scp", {key: f"{key}.wav" for key in lengths})
    write_table(tmp_path / "raw" / "test" / "utt2num_samples", lengths)
    (tmp_path / "config.yaml").write_text("decoder: transformer\n")
    (tmp_path / "beam.yaml").write_text("nbest: 1\n")
    (tmp_path / "x.pth").write_text("")
    return fake


def decode(directory, arguments="", nj=2):
    files = (directory / "config.yaml", directory / "x.pth", directory / "out", directory / "beam.yaml")
    return decode_beam(directory / "raw" / "test", *files, arguments, 0, nj=nj)


def test_search_tries_a_failed_piece_again_and_a_second_run_does_what_is_missing(search, tmp_path):
    search.broken.touch()
    with pytest.raises(UserError, match=r"1 of 8 pieces failed: asr_inference.6: out of luck \(logs: .*pieces/"):
        decode(tmp_path)
    assert len(search.calls()) == 9 and search.calls().count("u5") == 2
    search.broken.unlink()
    hypotheses = decode(tmp_path)
    assert len(search.calls()) == 10 and search.calls().count("u5") == 3
    assert hypotheses.pop("short") == Hypothesis()
    assert hypotheses == {f"u{i}": Hypothesis(*(f"{name} of u{i}, beam None" for name in FILES)) for i in range(9)}
    # What asr_inference wrote stays, as in ESPnet's recipes.
    logdir = tmp_path / "out" / "logdir"
    tables = [read_table(logdir / f"output.{i}" / "1best_recog" / "text") for i in range(1, 9)]
    assert sorted(key for table in tables for key in table) == sorted(hypotheses)
    assert (logdir / "asr_inference.8.log").exists() and list((tmp_path / "out").iterdir()) == [logdir]


@pytest.mark.parametrize("changed", ["arguments", "settings", "weights", "LM", "audio"])
def test_pieces_of_a_search_with_anything_else_are_not_taken(search, tmp_path, changed):
    (tmp_path / "lm.pth").write_text("")
    (tmp_path / "beam.yaml").write_text(f"lm_file: {tmp_path}/lm.pth\n")
    search.broken.touch()
    with pytest.raises(UserError):
        decode(tmp_path, nj=1)
    search.broken.unlink()
    if changed == "audio":
        table = read_table(tmp_path / "raw" / "test" / "wav.scp")
        write_table(tmp_path / "raw" / "test" / "wav.scp", {**table, "u0": "other.wav"})
    elif changed != "arguments":
        file = {"settings": "beam.yaml", "weights": "x.pth", "LM": "lm.pth"}[changed]
        (tmp_path / file).write_text((tmp_path / file).read_text() + "penalty: 1\n")
    before = len(search.calls())
    hypotheses = decode(tmp_path, "--beam_size 3" if changed == "arguments" else "", nj=1)
    assert len(search.calls()) == before + 4
    assert hypotheses["u0"].text.endswith("beam 3" if changed == "arguments" else "beam None")


def test_arguments_that_the_search_does_not_take_are_one_line_and_not_tried_twice(search, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        decode(tmp_path, "--beem_size 3")
    reason = "asr_inference: unrecognized arguments: --beem_size 3; correct --inference_args or the --inference_config"
    names = "asr_inference.1, asr_inference.2, asr_inference.3 and 5 more"
    assert str(caught.value).startswith(f"8 of 8 pieces failed: {names}: {reason} (logs: ")
    assert not (tmp_path / "calls").exists() and "tried again" not in capsys.readouterr().out
    with pytest.raises(UserError, match='--inference_args --beam_size "3: No closing quotation'):
        decode(tmp_path, '--beam_size "3')


def test_stage_12_takes_the_search_to_slurm(search, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    args = SimpleNamespace(
        **{"inference_config": tmp_path / "beam.yaml", "inference_args": "", "lm_file": None, "ngpu": 0, "nj": 2},
        **{"asr_train_config": tmp_path / "config.yaml", "asr_model_file": tmp_path / "x.pth"},
        **{"data_feats": tmp_path / "raw", "decode_dir": tmp_path / "out"},
        **{"cmd": "slurm", "slurm_config": tmp_path / "slurm.yaml"},
    )
    with pytest.raises(UserError, match="--cmd slurm: there is no sbatch here"):
        _make_decoder(read_settings(args.inference_config), args)("test")
