"""asr.sh: its options, the errors a user meets, and stages that stop with one line when something is missing."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from recipe_tools import ASR_SH, make_set, one_line_error

from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.data.table import make_data_dirs
from espnet_lmu.errors import UserError
from espnet_lmu.training.statistics import _data_digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stop-stag", "3"], "unknown option --stop_stag; did you mean --stop_stage"),
        (["--inference_confg", "x"], "did you mean --inference_config"),
        (["--qqq", "x"], "unknown option --qqq ("),
        (["--skip_train", "true"], "--skip_train; --stage and --stop_stage choose what runs"),
        (["--ngpu", "99"], "--ngpu 99: this machine has fewer GPUs"),
        (["--ngpu"], "--ngpu: a value is missing"),
        (["3"], "unexpected argument: 3"),
        (["--stage", "two"], "--stage two: give a whole number"),
        (["--nproc", "two"], "--train_nj two: give a whole number"),
        (["--train_nj", "0"], "--train_nj 0: give at least 1"),
        (["--stage", "0", "--stop_stage", "0"], "--stop_stage 0: give at least 1"),
        (["--stage", "16"], "--stage 16: the last stage is 15"),
        (["--stage", "7", "--stop_stage", "3"], "--stage 7 --stop_stage 3: no stage to run"),
        (["--max_wav_duration", "abc"], "--max_wav_duration abc: give a number of seconds"),
        (["--bpemode", "foo"], "--bpemode foo: give one of: unigram bpe"),
        (["--feats_normalize", "foo"], "--feats_normalize foo: give one of: global_mvn utterance_mvn none"),
        (["--ignore_init_mismatch", "maybe"], "--ignore_init_mismatch maybe: give one of: true false"),
        (["--dumpdir", "a,b"], "--dumpdir a,b --expdir exp: ESPnet takes no commas in paths"),
        (["--fs", "abc"], "--fs abc: give a sampling rate"),
        (["--check_policy", "silent=foo"], "--check_policy silent=foo: the policy of silent is one of"),
        (["--speed_perturb_factors", "9"], '--speed_perturb_factors "9": give different factors'),
        (["--train_set", ""], "--train_set is required"),
        (["--feats_type", "mfcc"], "--feats_type mfcc: give one of: raw fbank"),
        (["--token_type", "phn"], "--token_type phn: give one of: bpe char"),
        (["--asr_config", "nowhere.yaml"], "--asr_config nowhere.yaml: no such file (relative paths start at /"),
        (["--pretrained_model", "exp/a.pth:encoder:encoder"], "--pretrained_model exp/a.pth: no such file"),
        (["--python", "nowhere"], "--python nowhere: no such program"),
        (["--stage", "3", "--stop_stage", "3"], "data/train: no such data directory"),
        (["--stage", "4", "--stop_stage", "4"], "dump/raw/org/train/utt2num_samples: no such file"),
        (["--stage", "5", "--stop_stage", "5"], "dump/raw/train/text: no such file"),
        (["--stage", "10"], "dump/raw/train/wav.scp: no such file; run stage 4 first"),
        (["--stage", "11"], "exp/asr_stats_raw_bpe30/.stamp: no such file; run stage 10 first"),
        (["--stage", "12"], "exp/asr_train_raw_bpe30/config.yaml: no such file; run stage 11 first"),
        (["--stage", "13"], "not a BPE model; run stage 5"),
        (["--stage", "13", "--token_type", "char"], "valid.loss.ave/test/text: no such file; run stage 12 first"),
    ],
)
def test_mistakes_are_one_line(recipe, arguments, message):
    assert message in one_line_error(recipe.run(*arguments))


def test_training_data_that_cannot_be_split_are_one_line(recipe):
    stats, data = recipe.directory / "exp" / "asr_stats_raw_bpe30", recipe.directory / "dump" / "raw" / "train"
    for path in (data / "wav.scp", data / "text", stats / "train" / "speech_shape", stats / "train" / "text_shape.bpe"):
        write_table(path, {"a": "1", "b": "2"})
    (stats / ".stamp").touch()
    arguments = ["--stage", "11", "--num_splits_asr", "3"]
    data, token_list = data.parent, recipe.directory / "data" / "token_list" / "bpe_unigram30" / "tokens.txt"
    scps = {part: data / part / "wav.scp" for part in ("train", "valid")}
    write_table(scps["valid"], {"a": "1"})
    write_table(token_list, {"<blank>": ""})
    (stats / ".data").write_text("other")
    assert "statistics of other data than dump/raw/train and dump/raw/valid" in one_line_error(recipe.run(*arguments))
    (stats / ".data").write_text(_data_digest(scps, token_list))
    message = one_line_error(recipe.run(*arguments))
    assert (
        "stage 11: --num_splits_asr 3: splitting dump/raw/train failed: RuntimeError: The number of lines " in message
    )
    assert (recipe.directory / message.split("(log: ")[1].rstrip(")")).exists() and not (stats / "splits3").exists()


def test_python_without_the_packages_is_named_before_any_work(recipe):
    bare = recipe.directory / "bare_python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    assert "bare_python has not all packages" in one_line_error(recipe.run("--python", str(bare)))


def test_help_lists_every_option_with_the_defaults_of_the_recipe(recipe):
    result = recipe.run("--nbpe", "77", "--help")
    options = re.search("# BEGIN OPTIONS\n(.*?)# END OPTIONS", ASR_SH.read_text(), re.DOTALL)[1]
    names = re.findall("^([a-z_]+)=", options, re.MULTILINE)
    assert result.returncode == 0 and len(names) > 30
    for name in names:
        assert re.search(rf"^  --{name} +\S", result.stdout, re.MULTILINE), name
    assert "(default: 77)" in result.stdout and "(default: train)" in result.stdout


def test_missing_data_script_is_named(recipe):
    (recipe.directory / "local" / "data.sh").unlink()
    assert "local/data.sh: not found" in one_line_error(recipe.run("--stop_stage", "1"))


def test_wrong_corpus_stops_stage_1(recipe):
    source = recipe.directory / "source"
    for name in ("train", "valid", "test"):
        make_set(source / name, 2)
    text = source / "valid" / "text"
    text.write_text(text.read_text() + "stranger HIGH\n")
    message = one_line_error(recipe.run("--stop_stage", "1"))
    assert "data/valid: 1 incomplete" in message and "stranger: not in wav.scp, utt2spk" in message
    assert '--check_policy "incomplete=drop"' in message


def test_stages_1_to_5_name_their_directories_as_espnet_does_and_can_run_again(recipe):
    source = recipe.directory / "source"
    for i, name in enumerate(("train", "valid", "test")):
        make_set(source / name, 4, seed=i)
    short = read_table(source / "test" / "wav.scp")["spk0-000"]
    soundfile.write(short, [0.0] * 100, 16000)
    arguments = ["--stop_stage", "5", "--lang", "en", "--token_type", "char", "--nj", "1", "--dumpdir", "my dump"]
    result = recipe.run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "my dump/raw/test: 1 utterances may be too short to decode" in result.stdout
    for path in ("org/train", "org/valid", "train", "valid", "test"):
        assert len(read_table(recipe.directory / "my dump" / "raw" / path / "wav.scp")) == 4
    assert (recipe.directory / "data" / "en_token_list" / "char" / "tokens.txt").exists()
    assert recipe.run(*arguments).returncode == 0
    assert not list(recipe.directory.rglob("*.tmp"))


def test_a_second_run_waits_for_the_data_that_another_makes(recipe):
    for i, name in enumerate(("train", "valid", "test")):
        make_set(recipe.directory / "source" / name, 4, seed=i)
    (recipe.directory / "data").mkdir()
    with open(recipe.directory / "data" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = subprocess.Popen(
            recipe.command("--stop_stage", "2"), cwd=recipe.directory, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout.readline().endswith("Waiting for another run that is at the same stages (data/.lock)\n")
        assert not (recipe.directory / "data" / "train").exists()
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "Stage 1" in output and (recipe.directory / "data" / "train" / "spk2utt").exists()


def test_ctrl_c_is_no_error_of_the_data(recipe):
    script = recipe.directory / "local" / "data.sh"
    script.write_text("#!/usr/bin/env bash\ntouch started\nexec sleep 100\n")
    process = subprocess.Popen(
        recipe.command("--stop_stage", "1"),
        cwd=recipe.directory,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    while not (recipe.directory / "started").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "interrupted; the same command goes on from here\n"


def test_a_corpus_in_a_table(tmp_path):
    table = tmp_path / "table.csv"

    def make(text: str) -> None:
        table.write_text(text, encoding="utf-8")
        make_data_dirs(table, ["train", "test"], tmp_path / "data")

    for text, message in (
        ("train,a.wav,ann\n", "line 1: 3 columns; give SET,FILE,SPEAKER,TEXT"),
        ("train;a.wav;ann;yes\n", "line 1: one column; give SET,FILE,SPEAKER,TEXT"),
        ("set,file,speaker,text\ntrain,a.wav,ann,yes\n", "line 1: a header; delete this line"),
        ('train,"a\nb.wav",ann,yes\n', "line 2: FILE has a line break"),
        ("train,a.wav,ann,yes\n\ntrian,b.wav,bob,no\n", "line 3: the set 'trian' is none of train, test"),
        ("train,,ann,yes\n", "line 1: an empty FILE"),
        ("train,a.wav,ann,yes\ntest,a.flac,ann,yes\n", "line 2: a.flac of ann would be ann-a, as line 1 is; rename it"),
        ("train,.,ann,yes\n", "line 1: an empty FILE"),
        ("train,a.wav,ann,yes\n", "table.csv: no line of the set test"),
        ('train,a.wav,ann,"yes\n', "line 1: unexpected end of data"),
    ):
        with pytest.raises(UserError, match=message):
            make(text)
    assert not (tmp_path / "data").exists()
    make(' ,\ntrain, my dir/a  b.wav, ann  lee, "yes,\n YES"\ntest,c.wav,bob,no\n')
    assert read_table(tmp_path / "data" / "train" / "text") == {"ann_lee-my_dir-a__b": "yes, YES"}
    assert read_table(tmp_path / "data" / "train" / "utt2spk") == {"ann_lee-my_dir-a__b": "ann_lee"}
    assert read_table(tmp_path / "data" / "train" / "wav.scp") == {
        "ann_lee-my_dir-a__b": str(tmp_path / "my dir" / "a  b.wav")
    }
