"""Several processes that train on the CPU: they end together, and a failure names its cause."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "espnet_lmu.training.launch", "2", *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, **options)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if int(text.rsplit(")", 1)[1].split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_mistyped_option_is_named():
    run = launch("--max_epochh", "3", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = run.communicate()
    assert run.returncode != 0 and "error: unrecognized arguments: --max_epochh" in output


def test_the_processes_end_with_the_one_that_started_them():
    run = launch(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (
        len(workers := [p for p in children(run.pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]) < 2
    ):
        assert run.poll() is None
        time.sleep(0.1)
    time.sleep(2)  # until torch has asked the system to be told of the parent's death
    assert all(map(alive, workers))  # they are importing ESPnet
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
