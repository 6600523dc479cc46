"""A recipe from audio to error rates, once: every stage, ESPnet's search beside, resuming, and damaged models.

One test, because ESPnet's import (13 s) is paid by each of its processes.
"""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import soundfile
import torch
import yaml
from recipe_tools import make_set, one_line_error, tone_words

from espnet_lmu.data.audio import read_audio
from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.decoding.greedy import GreedyDecoder
from espnet_lmu.decoding.results import FILES
from espnet_lmu.errors import UserError

TRAIN_CONFIG = """\
encoder: lmu
encoder_conf: {output_size: 32, num_blocks: 1, memory_size: 8, theta: 8, attention_heads: 2}
frontend_conf: {n_fft: 400, win_length: 400, hop_length: 320, fs: 16k}
model_conf: {ctc_weight: 1.0}
optim: adam
optim_conf: {lr: 0.01}
batch_type: folded
batch_size: 4
max_epoch: 4
keep_nbest_models: 1
best_model_criterion: [[valid, loss, min]]
num_workers: 0
use_matplotlib: false
seed: 1
"""


def test_from_audio_to_error_rates(recipe, monkeypatch):
    directory, exp = recipe.directory, recipe.directory / "exp" / "asr_train_tiny_raw_en_char_sp"
    for seed, (name, size) in enumerate({"train": 24, "valid": 3, "test": 5}.items()):
        make_set(directory / "source" / name, size, seed=100 * seed)
    (directory / "train_tiny.yaml").write_text(TRAIN_CONFIG)
    options = ["--lang", "en", "--token_type", "char", "--speed_perturb_factors", "0.9 1.0"]
    options += ["--asr_config", "train_tiny.yaml", "--nj", "2", "--inference_nj", "2"]

    # Stages 1 to 10: statistics have both lengths. Stage 11, with its data in two parts, goes on after a kill, and
    # leaves a model, its average and TensorBoard files.
    result = recipe.run(*options, "--stop_stage", "10")
    assert result.returncode == 0, result.stdout + result.stderr
    split = [*options, "--num_splits_asr", "2"]
    _train_and_kill(recipe, [*split, "--stage", "11", "--stop_stage", "11"], exp / "1epoch.pth")
    start = min(exp.glob("[1-4]epoch.pth"))  # the first epoch's, unless the kill came late
    # What it would not start from, or would call another model, leaves it as it is.
    settings = (exp / "config.yaml").read_text(), (exp / "train_starts.json").read_text()
    other = recipe.run(*split, "--pretrained_model", str(start), "--stage", "11", "--stop_stage", "11")
    assert f"trained with init_param [], not ['{start}']; give --asr_tag NAME for another" in one_line_error(other)
    assert settings == ((exp / "config.yaml").read_text(), (exp / "train_starts.json").read_text())
    result = recipe.run(*split, "--stage", "11", "--stop_stage", "11")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4/4epoch started" in result.stdout and "1/4epoch started" not in result.stdout
    stats = directory / "exp" / "asr_stats_raw_en_char_sp"
    parts = [read_table(stats / "splits2" / "wav.scp" / f"split.{i}") for i in range(2)]
    assert [len(part) for part in parts] == [24, 24] and not parts[0].keys() & parts[1].keys()
    assert yaml.safe_load((exp / "config.yaml").read_text())["multiple_iterator"]
    size = len((directory / "data/en_token_list/char/tokens.txt").read_text().splitlines())
    shapes = read_table(stats / "train" / "text_shape.char")
    assert len(shapes) == 48 and all(shape.endswith(f",{size}") for shape in shapes.values())
    assert (stats / "train" / "feats_stats.npz").exists() and not list((directory / "exp").glob("*.unfinished"))
    assert (exp / "valid.loss.ave.pth").exists() and list((exp / "tensorboard").rglob("events*"))
    assert "4epoch: train loss " in result.stdout and ", valid loss " in result.stdout

    # A training that fails says why, whatever earlier runs left in its log.
    broken = ["--asr_exp", str(directory / "broken"), "--asr_args", "--max_epochh 3"]
    (directory / "broken").mkdir()
    (directory / "broken" / "train.log").write_text("ValueError: of an earlier run\n")
    message = one_line_error(recipe.run(*options, *broken, "--stage", "11", "--stop_stage", "11"))
    assert "stage 11: training failed: " in message and "unrecognized arguments: --max_epochh" in message

    # One whose weights became infinite is no success, though ESPnet ends it as one.
    diverged = ["--asr_exp", str(directory / "diverged"), "--asr_args", "--optim sgd --optim_conf lr=1.0e+30"]
    message = one_line_error(recipe.run(*options, *diverged, "--stage", "11", "--stop_stage", "13"))
    assert "stage 11: training diverged: " in message and str(directory / "diverged" / "train.log") in message

    # Stage 10 again: what is there is kept.
    assert "kept" in recipe.run(*options, "--stage", "10", "--stop_stage", "10").stdout

    # Stages 12 and 13. One test utterance is too short for any model: no words, no crash.
    dump = directory / "dump" / "raw" / "test"

    soundfile.write(dump / "short.flac", tone_words(["LOW"])[:100], 16000)
    for name, value in {"wav.scp": str(dump / "short.flac"), "text": "LOW", "utt2num_samples": "100"}.items():
        write_table(dump / name, {**read_table(dump / name), "zz-short": value})
    result = recipe.run(*options, "--stage", "12")
    assert result.returncode == 0, result.stderr
    assert "1 utterances are too short for the model, no words: zz-short" in result.stdout
    assert "real-time factor" in result.stdout and "### WER" in result.stdout and "/test|6|" in result.stdout
    greedy = exp / "inference_asr_model_valid.loss.ave" / "test"
    tables = {name: read_table(greedy / name) for name in FILES}
    for table in tables.values():
        assert list(table) == list(read_table(dump / "text"))
    assert tables["text"]["zz-short"] == "" and float(tables["score"]["spk0-000"]) < 0
    assert (greedy / "score_wer" / "result.txt").exists() and (greedy / "score_cer" / "result.txt").exists()
    # The results say how they came about, the training of before the kill included.
    results = (exp / "RESULTS.md").read_text()
    assert results == (greedy.parent / "RESULTS.md").read_text() and (exp / "report.html").exists()
    for line in ("|seed|1|", "|training|4 epochs in ", "|test|test|0.00|5|2|", "--stage 11 --stop_stage 11\n"):
        assert line in results
    assert results.rstrip().endswith("--stage 12\n```") and "not recorded" not in results

    # ESPnet's own search through the same stage.
    (directory / "decode_beam.yaml").write_text("beam_size: 2\nctc_weight: 1.0\n")
    beam_options = ["--inference_config", "decode_beam.yaml", "--inference_nj", "1", "--stage", "12"]
    result = recipe.run(*options, *beam_options)
    assert result.returncode == 0, result.stderr
    beam = read_table(exp / "decode_beam_asr_model_valid.loss.ave" / "test" / "text")
    assert list(beam) == list(tables["text"]) and beam["zz-short"] == ""
    message = one_line_error(recipe.run(*options, *beam_options, "--inference_args", "--ctc_weight 0.5"))
    assert "this model has CTC only" in message

    _check_decoder(recipe, exp, dump, tables, monkeypatch)


def _train_and_kill(recipe, arguments, weights):
    """Start a training and kill all its processes as soon as an epoch's weights are there."""
    process = subprocess.Popen(
        recipe.command(*arguments), cwd=recipe.directory, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not weights.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _check_decoder(recipe, exp, dump, tables, monkeypatch):
    """In this process: batches do not change results; incomplete and damaged weights are refused."""

    monkeypatch.chdir(recipe.directory)
    decoder = GreedyDecoder(exp / "config.yaml", exp / "valid.loss.ave.pth")
    audio = {key: read_audio(path)[0] for key, path in read_table(dump / "wav.scp").items()}
    for key, samples in audio.items():
        alone = decoder.decode([samples])[0]
        assert alone.text == tables["text"][key] and alone.token_int == tables["token_int"][key]
    assert [h.text for h in decoder.decode([np.zeros(10), audio["spk0-000"]])] == ["", tables["text"]["spk0-000"]]

    state = torch.load(exp / "valid.loss.ave.pth")
    renamed = dict(state)
    renamed["encoder.other"] = renamed.pop(next(name for name in state if name.startswith("encoder.")))
    torch.save(renamed, "renamed.pth")
    (recipe.directory / "cut.pth").write_bytes((exp / "valid.loss.ave.pth").read_bytes()[:5000])
    for name, message in (("renamed.pth", "missing encoder.*unknown encoder.other"), ("cut.pth", "not a readable")):
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            GreedyDecoder(exp / "config.yaml", name)
    with pytest.raises(UserError, match="checkpoint.pth: not the weights of a model"):
        GreedyDecoder(exp / "config.yaml", exp / "checkpoint.pth")
    shutil.rmtree("exp/asr_stats_raw_en_char_sp")
    with pytest.raises(UserError, match="config.yaml refers to .*feats_stats.npz, which is missing"):
        GreedyDecoder(exp / "config.yaml", exp / "valid.loss.ave.pth")
