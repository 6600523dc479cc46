"""The function whose pieces `test_slurm` runs: jobs import this module, and nothing large with it."""

import os
import shutil
import signal
from pathlib import Path

from espnet_lmu.errors import UserError


def work(name: str, directory: Path) -> str:
    """What a piece does; its name says what goes wrong."""
    tries = directory / f"{name}.tries"
    with open(tries, "a") as stream:
        stream.write("x")
    if name == "killed" or (name == "killed_once" and tries.stat().st_size == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "fails" or (name == "fails_once" and tries.stat().st_size == 1):
        raise RuntimeError("cannot do it")
    if name == "bad_input":
        raise UserError("a.wav: not audio")
    if name == "nowhere_to_write":
        shutil.rmtree(directory / "pieces")
    return name.upper()
