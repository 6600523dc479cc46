"""Checkpoints survive a kill at any moment and a full disk."""

import subprocess
import sys

import pytest
import torch
import yaml

from espnet_lmu.errors import UserError
from espnet_lmu.training import checkpoint, resume
from espnet_lmu.training.checkpoint import atomic_save, repair


@pytest.fixture
def experiment(tmp_path):
    """What ESPnet leaves after three epochs, the second of which was the best."""
    stats = {epoch: {"valid": {"loss": loss}} for epoch, loss in ((1, 3.0), (2, 1.0), (3, 2.0))}
    for epoch in stats:
        torch.save({"weight": torch.full((2,), float(epoch))}, tmp_path / f"{epoch}epoch.pth")
    state = {"model": {"weight": torch.full((2,), 3.0)}, "reporter": {"stats": stats, "epoch": 3}, "optimizers": [{}]}
    torch.save(state, tmp_path / "checkpoint.pth")
    (tmp_path / "latest.pth").symlink_to("3epoch.pth")
    (tmp_path / "valid.loss.best.pth").symlink_to("2epoch.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"best_model_criterion": [["valid", "loss", "min"]]}))
    return tmp_path


def listing(directory):
    return {p.name: p.readlink().name if p.is_symlink() else p.read_bytes() for p in directory.iterdir()}


def test_a_healthy_experiment_is_left_alone(experiment):
    before = listing(experiment)
    assert repair(experiment) == []
    assert listing(experiment) == before


def test_a_new_experiment_is_left_alone(tmp_path):
    assert repair(tmp_path / "none") == []


@pytest.mark.parametrize(
    "lost", [("3epoch.pth", "latest.pth"), ("latest.pth",), ("valid.loss.best.pth",), ("3epoch.pth",)]
)
def test_what_a_kill_left_out_is_made(experiment, lost):
    for name in lost:
        (experiment / name).unlink()
    assert repair(experiment)
    assert torch.load(experiment / "3epoch.pth")["weight"].tolist() == [3.0, 3.0]
    assert torch.load(experiment / "latest.pth")["weight"].tolist() == [3.0, 3.0]
    assert torch.load(experiment / "valid.loss.best.pth")["weight"].tolist() == [2.0, 2.0]


def test_links_of_the_epoch_before_the_kill_are_renewed(experiment):
    (experiment / "latest.pth").unlink()
    (experiment / "latest.pth").symlink_to("2epoch.pth")
    repair(experiment)
    assert (experiment / "latest.pth").readlink().name == "3epoch.pth"


def test_unfinished_files_are_removed(experiment):
    (experiment / ".checkpoint.pth.77.tmp").write_bytes(b"half")
    repair(experiment)
    assert not list(experiment.glob(".*"))


@pytest.mark.parametrize("content", ["", "best_model_criterion:\n- - valid\n  - {"])
def test_a_cut_configuration_does_not_matter(experiment, content):
    (experiment / "config.yaml").write_text(content)
    (experiment / "3epoch.pth").unlink()
    assert len(repair(experiment)) == 1


def test_a_second_training_is_kept_out(experiment, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.5)
    monkeypatch.setattr(sys, "argv", ["resume", str(experiment)])
    hold = f"import time; from espnet_lmu.training.checkpoint import *; claim(Path({str(experiment)!r}))\n"
    hold += "print('claimed', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout.readline() == "claimed\n"
        temporary = experiment / ".checkpoint.pth.1.tmp"
        temporary.touch()
        with pytest.raises(UserError, match="a training of this experiment is running; wait for its end, or give"):
            resume.main()
        assert temporary.exists()
        training.kill()
    resume.main()
    assert not temporary.exists() and "removed the unfinished" in capsys.readouterr().out


def test_a_truncated_checkpoint_is_named(experiment):
    checkpoint = experiment / "checkpoint.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    run = subprocess.run(
        [sys.executable, "-m", "espnet_lmu.training.resume", str(experiment)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {checkpoint}: not a readable checkpoint") and run.stderr.count("\n") == 1


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    atomic_save({"epoch": 1}, path)

    def full_disk(obj, file):
        file.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"checkpoint\.pth: cannot be written"):
        atomic_save({"epoch": 2}, path)
    monkeypatch.undo()
    assert torch.load(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


@pytest.mark.parametrize("module", ["espnet2.train.trainer", "espnet2.main_funcs.average_nbest_models"])
def test_espnet_writes_through_it(module):
    import importlib

    import espnet_lmu  # noqa: F401

    patched = importlib.import_module(module)
    assert patched.torch.save is atomic_save
    assert patched.torch.nn is torch.nn
    assert torch.save is not atomic_save


def test_espnet_writes_its_configuration_at_once(tmp_path):
    import espnet2.tasks.abs_task as abs_task

    config = abs_task.Path(tmp_path) / "config.yaml"
    with config.open("w", encoding="utf-8") as stream:
        stream.write("encoder: lmu\n")
    with pytest.raises(OSError, match="No space left"), config.open("w", encoding="utf-8") as stream:
        stream.write("enc")
        raise OSError(28, "No space left on device")
    assert config.read_text() == "encoder: lmu\n" and list(tmp_path.iterdir()) == [config]
    with (abs_task.Path(tmp_path) / "other").open("w") as stream:
        stream.write("x")
    assert (tmp_path / "other").read_text() == "x"
