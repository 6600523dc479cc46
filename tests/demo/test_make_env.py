"""The environment of the two commands: made once, redone when it must be, and a failure is an error."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WANTED = ["setup.py", "espnet_lmu/lmu/frames.cpp"]  # an environment that was made with others is made anew
# Stands in for uv: notes its arguments and makes what the script looks at; fails while a file FAIL is there.
FAKE_UV = """#!/bin/sh
echo "$*" >>calls
if [ "$1" = venv ]; then mkdir -p .venv/bin; fi
if [ "$1" = pip ] && [ -e FAIL ]; then exit 1; fi
"""


class Clone:
    def __init__(self, path: Path):
        self.path = path
        (path / ".ci").mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "make_env.sh", path / ".ci")
        for name in WANTED:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("first\n")
        (path / "tools").mkdir()
        (path / "tools" / "uv").write_text(FAKE_UV)
        (path / "tools" / "uv").chmod(0o755)

    def make_env(self) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{self.path / 'tools'}:/usr/bin:/bin"}
        return subprocess.run([self.path / ".ci" / "make_env.sh"], env=environment, capture_output=True, text=True)

    def installations(self) -> int:
        calls = self.path / "calls"
        return calls.read_text().count("pip install") if calls.exists() else 0


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path / "clone")


def test_environment_is_made_once(clone):
    assert clone.make_env().returncode == 0
    assert clone.installations() == 1
    calls = (clone.path / "calls").read_text()
    assert "venv --quiet --seed" in calls and "--editable .[demo,dev]" in calls
    assert clone.make_env().returncode == 0
    assert clone.installations() == 1


@pytest.mark.parametrize("name", WANTED)
def test_environment_is_made_anew_for_other_requirements(clone, name):
    clone.make_env()
    (clone.path / name).write_text("second\n")
    assert clone.make_env().returncode == 0
    assert clone.installations() == 2


def test_environment_is_made_anew_after_the_clone_moved(clone):
    clone.make_env()
    moved = clone.path.with_name("moved")
    clone.path.rename(moved)
    clone.path = moved
    assert clone.make_env().returncode == 0
    assert clone.installations() == 2


def test_failed_installation_is_an_error_and_is_redone(clone):
    (clone.path / "FAIL").touch()
    failed = clone.make_env()
    assert failed.returncode == 1
    assert "error: .venv could not be made" in failed.stderr
    (clone.path / "FAIL").unlink()
    assert clone.make_env().returncode == 0
    assert clone.installations() == 2


def test_demo_recipe_names_the_nearest_options():
    recipe = ROOT / "egs" / "demo" / "asr1" / "run.sh"
    done = subprocess.run([recipe, "--stop_stages", "1"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "--stop_stage" in done.stderr
