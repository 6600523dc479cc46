"""A comparison trains every encoder alike, keeps what is finished, and its table says what the runs gave."""

import datetime
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from espnet_lmu.comparison.compare import _all_encoders, command, plot_curves
from espnet_lmu.comparison.plan import make_run, read_encoder, training_settings, write_settings
from espnet_lmu.comparison.results import read_result, table
from espnet_lmu.errors import UserError
from espnet_lmu.training.history import Epoch, History

ROOT = Path(__file__).resolve().parents[2]
ENCODER = {"encoder": "lmu", "encoder_conf": {"output_size": 16}}


def test_rate_and_seed_reach_optimizer_and_schedule():
    schedule = {"max_lr": 0.002, "min_lr": 0.00002, "first_cycle_steps": 10}
    training = {"optim": "adamw", "optim_conf": {"lr": 0.002, "weight_decay": 0.3}, "scheduler_conf": schedule}
    settings = training_settings(training, ENCODER, 0.004, 7)
    assert settings["optim_conf"] == {"lr": 0.004, "weight_decay": 0.3}
    assert settings["scheduler_conf"] == {"max_lr": 0.004, "min_lr": 0.00004, "first_cycle_steps": 10}
    assert settings["seed"] == 7 and settings["encoder_conf"] == {"output_size": 16}
    assert training["optim_conf"]["lr"] == 0.002  # the next encoder starts from the same
    bare = training_settings({"optim_conf": None, "scheduler_conf": {"max_lr": 0.01}}, {}, 0.004, 3)
    assert bare["optim_conf"] == {"lr": 0.004} and bare["scheduler_conf"] == {"max_lr": 0.004}


def test_encoder_file_sets_nothing_that_belongs_to_the_protocol(tmp_path):
    path = tmp_path / "conformer.yaml"
    path.write_text(yaml.safe_dump(ENCODER | {"max_epoch": 100}))
    with pytest.raises(UserError, match="conformer.yaml: expected encoder and encoder_conf alone"):
        read_encoder(path)
    path.write_text("encoder: [")
    with pytest.raises(UserError, match="conformer.yaml: cannot be read"):
        read_encoder(path)


def test_directory_of_another_setting_is_not_taken_for_the_run(tmp_path):
    run = make_run(tmp_path, "lmu", 0.002, 1)
    write_settings(run, ENCODER | {"max_epoch": 3})
    write_settings(run, ENCODER | {"max_epoch": 3})
    with pytest.raises(UserError, match="lmu_lr0.002_seed1.*other settings"):
        write_settings(run, ENCODER | {"max_epoch": 4})


def make_finished(run, words: dict[str, str], seconds: float, cer: float) -> None:
    """What stages 11 to 13 leave: the reporter's times and rates, and hypotheses of the sets."""
    for name in ("dev", "test"):
        folder = run.directory / "decode" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text").write_text("".join(f"{key} {text}\n" for key, text in words.items()))
    phase = {"time": datetime.timedelta(seconds=seconds), "cer_ctc": cer}
    stats = {epoch: {"train": phase, "valid": phase} for epoch in (1, 2)}
    torch.save({"reporter": {"epoch": 2, "stats": stats}, "model": {}}, run.directory / "checkpoint.pth")


def make_references(root: Path) -> dict[str, str]:
    words = {"u1": "ONE TWO", "u2": "THREE FOUR"}
    for name in ("dev", "test"):
        (root / "dump" / name).mkdir(parents=True)
        (root / "dump" / name / "text").write_text("".join(f"{key} {text}\n" for key, text in words.items()))
    return words


def test_table_has_mean_and_spread_of_the_seeds(tmp_path):
    words = make_references(tmp_path)
    runs = [make_run(tmp_path, "lmu", 0.002, seed) for seed in (1, 2)]
    make_finished(runs[0], words, 30, 0.1)
    make_finished(runs[1], words | {"u2": "THREE FIVE"}, 30, 0.1)
    results = [read_result(run, tmp_path / "dump", ["dev", "test"], 1234) for run in runs]
    text = table([results], ["dev", "test"], {"lmu": 0.01})
    row = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert row[:5] == ["lmu", "1,234", "0.002", "1 2", "12.5 ± 17.7"]
    assert row[-2:] == ["2.0", "0.0100"]


RECIPE = """#!/usr/bin/env bash
# What a recipe does for a comparison, without learning: the better the learning rate is, the more words are right.
set -e
echo "$@" >>calls.txt
while [ $# -gt 0 ]; do printf -v "${1#--}" '%s' "$2"; shift 2; done
if [ "${stop_stage:-13}" = 10 ]; then mkdir -p "$asr_stats_dir"; touch "$asr_stats_dir/.data"; exit; fi
if [ -e broken ]; then echo "error: stage 11: out of memory" >&2; exit 1; fi
PYTHON FAKE "$asr_exp"
"""
FAKE = """
import sys, yaml
from pathlib import Path
from test_comparison import make_finished
from espnet_lmu.comparison.plan import Run
directory = Path(sys.argv[1])
rate = yaml.safe_load((directory / "train.yaml").read_text())["optim_conf"]["lr"]
words = {"u1": "ONE TWO", "u2": "THREE FOUR" if rate == 0.002 else "THREE"}
make_finished(Run("", rate, 1, directory), words, 1, 0.1)
"""
COMPARE = """
import sys
from espnet_lmu.comparison import compare, speed
speed.measure = lambda experiments, args: {name: (1000, 0.01) for name in experiments}
compare.command_line(compare.main)
"""


def test_best_rate_gets_all_seeds_and_finished_runs_are_kept(tmp_path):
    make_references(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    script = tmp_path / "run.sh"
    script.write_text(RECIPE.replace("PYTHON FAKE", f"{sys.executable} fake.py"))
    script.chmod(0o755)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(ENCODER))
    (tmp_path / "training.yaml").write_text("max_epoch: 2\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}

    def compare(*arguments: str) -> subprocess.CompletedProcess:
        options = ["--training", "training.yaml", "--valid_set", "dev", "--test_set", "test", "--data_feats", "dump"]
        command = [sys.executable, "-c", COMPARE, *options, "--learning_rates", "0.001 0.002", *arguments]
        return subprocess.run(
            [*command, "one.yaml", "two.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    (tmp_path / "broken").touch()
    result = compare("--seeds", "1")
    assert result.returncode == 1
    assert "error: stage 11: out of memory (all of it in exp/comparison/" in result.stderr
    (tmp_path / "broken").unlink()
    result = compare("--seeds", "1 2")
    assert result.returncode == 0, result.stderr
    finished = sorted(path.parent.name for path in tmp_path.glob("exp/comparison/*/done"))
    expected = ["lr0.001_seed1", "lr0.002_seed1", "lr0.002_seed2"]
    assert finished == [f"{name}_{run}" for name in ("one", "two") for run in expected]
    report = (tmp_path / "exp/comparison/RESULTS.md").read_text()
    assert "| one | 1,000 | 0.002 | 1 2 | 0.0 ± 0.0 |" in report and "| one | 25.0 | 0.0 |" in report
    assert (tmp_path / "exp/comparison/curves.png").read_bytes()[1:4] == b"PNG"
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert sum("--stop_stage 10" in call for call in calls) == 1
    assert compare("--seeds", "1 2").returncode == 0
    assert (tmp_path / "calls.txt").read_text().splitlines() == calls
    assert (
        "`./compare.sh --training training.yaml --valid_set dev --test_set test --learning_rates '0.001 0.002' "
        in report
    )
    assert "--seeds '1 2' --jobs 2 --dir exp/comparison --data_feats dump one.yaml two.yaml`" in report
    result = compare("--seeds", "1 2", "--recipe_args", "--nbpe 64")
    assert result.returncode == 1
    assert result.stderr.startswith("error: --recipe_args '--nbpe 64': exp/comparison has begun with ''; give that")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/one.yaml").write_text(yaml.safe_dump(ENCODER))
    result = compare("--seeds", "1", "other/one.yaml")
    assert result.returncode == 1 and "error: two encoders have one name" in result.stderr
    (tmp_path / "wrong.yaml").write_text("encoder: lmu\nencoder_conf:\n    thetta: 8.0\n")
    result = compare("--seeds", "1", "wrong.yaml")
    assert result.returncode == 1 and "error: wrong.yaml: encoder_conf: " in result.stderr and "thetta" in result.stderr
    assert (tmp_path / "calls.txt").read_text().splitlines() == calls
    result = compare("--seeds", "1 1")
    assert result.returncode == 2 and "--seeds: invalid list value" in result.stderr


def test_encoders_of_the_comparison_have_nearly_one_size():
    from espnet2.tasks.asr import encoder_choices

    import espnet_lmu  # noqa: F401

    def size(path: Path) -> int:
        settings = read_encoder(path)
        with torch.device("meta"):
            encoder = encoder_choices.get_class(settings["encoder"])(80, **settings["encoder_conf"])
        return sum(parameter.numel() for parameter in encoder.parameters())

    ours = max(size(path) for path in (ROOT / "conf" / "encoders").glob("*.yaml"))
    peers = [size(path) for path in (ROOT / "conf" / "peers").glob("*.yaml")]
    assert len(peers) >= 3 and all(ours <= peer <= 1.05 * ours for peer in peers)


def test_command_has_no_paths_of_the_machine(monkeypatch):
    monkeypatch.chdir(ROOT / "egs/an4/asr1")
    args = Namespace(
        training=Path("conf/comparison.yaml"),
        valid_set="dev",
        test_set="test",
        learning_rates=[0.002],
        seeds=[1],
        jobs=2,
        dir=Path("exp/comparison"),
        data_feats=Path("dump/fbank"),
        recipe_args="--nbpe 64",
        encoders=[ROOT / "conf/encoders/lmu_original.yaml"],
    )
    assert shlex.split(command(args))[-4:] == [
        *("dump/fbank", "--recipe_args", "--nbpe 64"),
        "../../../conf/encoders/lmu_original.yaml",
    ]
    args.encoders = _all_encoders()
    assert command(args).endswith(" --recipe_args '--nbpe 64'")


def test_curves_are_drawn(tmp_path):
    history = History([Epoch(1, 60.0, 2.0, 3.0, 50.0), Epoch(2, 60.0, 1.0, 2.0, 20.0)], None)
    plot_curves({"lmu": history}, "dev", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
