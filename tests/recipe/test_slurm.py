"""Pieces of work, here and on a Slurm cluster: two machines of real daemons on this one."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from pieces_of_work import work
from recipe_tools import ROOT, one_line_error, run_module
from test_distributed import alive, make_training, wait_until

from espnet_lmu import parallel
from espnet_lmu.errors import UserError
from espnet_lmu.parallel import map_pieces

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SlurmctldPort=17817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
NodeName=machine-1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17818 CPUs=2 RealMemory=4000
NodeName=machine-2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17819 CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Slurm with two nodes; gives settings for ``--slurm_config``."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("needs root and Debian's packages slurm-wlm and munge")
    pytest.importorskip("submitit")
    directory = tmp_path_factory.mktemp("slurm")
    (directory / "state").mkdir()
    (directory / "slurm.conf").write_text(SLURM_CONF.format(directory=directory))
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = [f"--key-file={key}", f"--socket={directory}/munge.socket", f"--pid-file={directory}/munged.pid"]
    logs = [f"--log-file={directory}/munged.log", f"--seed-file={directory}/munged.seed", "--force"]
    settings = directory / "slurm.yaml"
    settings.write_text("all: {partition: main, time: '0:10:00', mem: 1000M}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
        patch.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")
        patch.setattr(parallel, "_POLL_SECONDS", 0.5)
        subprocess.run(["munged", *munge, *logs], check=True)
        try:
            for command in (["slurmctld", "-i"], ["slurmd", "-N", "machine-1"], ["slurmd", "-N", "machine-2"]):
                subprocess.run(command, check=True)
            deadline = time.monotonic() + 60
            while (
                states := subprocess.run(["sinfo", "-hN", "-o%t"], capture_output=True, text=True).stdout.split()
            ) != [
                "idle",
                "idle",
            ]:
                assert time.monotonic() < deadline, states
                time.sleep(0.2)
            yield settings
        finally:
            subprocess.run(["scontrol", "shutdown"])
            subprocess.run(["munged", "--stop", *munge])


def check_pieces(tmp_path, capsys, **options):
    """Failed pieces are tried again, then named; a second run does what is missing."""

    def run(*names: str) -> dict:
        pieces = {name: (name, tmp_path) for name in names}
        return map_pieces(work, pieces, directory=tmp_path / "pieces", nj=2, advance=seen.append, **options)

    seen: list[str] = []
    good = ["fine", "fails_once", "killed_once", "also_fine"]
    assert run(*good) == {name: name.upper() for name in good}
    assert sorted(seen) == sorted(good)
    assert "2 pieces failed and are tried again: fails_once, killed_once" in capsys.readouterr().out

    with pytest.raises(UserError) as caught:
        run("fine", "killed", "fails", "bad_input", "new")
    assert str(caught.value).startswith(
        "3 of 5 pieces failed: bad_input: a.wav: not audio, killed: its process was killed (out of memory, out of "
        "time?), fails: cannot do it (logs: "
    )
    tries = {path.stem: len(path.read_text()) for path in tmp_path.glob("*.tries")}
    assert tries == {
        **{"fine": 1, "also_fine": 1, "fails_once": 2, "killed_once": 2, "new": 1},
        **{"killed": 2, "fails": 2, "bad_input": 1},
    }


def test_pieces_by_processes(tmp_path, capsys):
    check_pieces(tmp_path, capsys)


def stay(process_id: Path) -> None:
    process_id.with_suffix(".tmp").write_text(f"{os.getpid()}")
    process_id.with_suffix(".tmp").rename(process_id)
    time.sleep(600)


def test_pieces_end_with_the_process_that_was_killed(tmp_path):
    process_id = tmp_path / "process_id"
    options = {"directory": tmp_path / "pieces", "nj": 1}
    parent = multiprocessing.get_context("fork").Process(
        target=map_pieces, args=(stay, {"stay": (process_id,)}), kwargs=options
    )
    parent.start()
    wait_until(process_id.exists)
    parent.kill()
    parent.join()
    wait_until(lambda: not alive(int(process_id.read_text())))


def interrupted(process_id: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    map_pieces(stay, {"stay": (process_id,), "other": (process_id,)}, directory=process_id.parent / "pieces", nj=2)


def test_ctrl_c_ends_all(tmp_path):
    process_id = tmp_path / "process_id"
    process = multiprocessing.get_context("fork").Process(target=interrupted, args=(process_id,))
    process.start()
    wait_until(process_id.exists)
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 1 and not alive(int(process_id.read_text()))  # 1: a KeyboardInterrupt
    assert not list(tmp_path.rglob("*.failed"))


def test_result_that_cannot_be_written_is_no_kill(tmp_path):
    with pytest.raises(UserError, match="nowhere_to_write: its result could not be written to .*pieces .disk full"):
        map_pieces(work, {"nowhere_to_write": ("nowhere_to_write", tmp_path)}, directory=tmp_path / "pieces", nj=1)


def test_pieces_on_slurm(tmp_path, capsys, slurm):
    check_pieces(tmp_path, capsys, cmd="slurm", slurm_config=slurm)


def test_a_partition_that_does_not_exist_is_one_line(tmp_path, slurm):
    settings = tmp_path / "slurm.yaml"
    settings.write_text("all: {partition: nowhere}\n")
    with pytest.raises(UserError, match=f"sbatch refused the jobs .*invalid partition.*see {settings}"):
        map_pieces(work, {"a": ("a", tmp_path)}, directory=tmp_path / "p", nj=1, cmd="slurm", slurm_config=settings)


@pytest.mark.parametrize(
    "content, message",
    [
        ("all: [partition]\n", "expected sections"),
        ("all: {time: 4:00:00}\n", "time: quote it"),
        ("all: {", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_settings_that_cannot_work(tmp_path, content, message):
    settings = tmp_path / "slurm.yaml"
    if content is not None:
        settings.write_text(content)
    result = run_module("espnet_lmu.training.launch", "1", "--slurm_config", settings)
    assert f"error: {settings}: {message}" in one_line_error(result)


def test_training_on_two_machines_of_slurm(tmp_path, slurm):
    arguments = [*make_training(tmp_path), "--output_dir", str(tmp_path / "exp"), "--max_epoch", "1"]
    options = ["--num_nodes", "2", "--slurm_config", slurm]
    result = run_module("espnet_lmu.training.launch", "1", *options, *arguments)
    assert result.returncode == 0, result.stderr
    assert "[machine-1:0/2]" in result.stdout + result.stderr or ":0/2]" in result.stderr
    stats = torch.load(tmp_path / "exp" / "checkpoint.pth", weights_only=False)["reporter"]["stats"]
    assert stats[1]["train"]["loss"] > 0
