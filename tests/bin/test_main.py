"""`espnet-lmu COMMAND`: what a user sees of a command that fails."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from espnet_lmu.bin import main
from espnet_lmu.data.files import naming


def test_a_failed_file_operation_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")

    def run(args) -> None:
        (tmp_path / "file" / "below").mkdir()

    command = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(sys.modules, "a_command", command)
    monkeypatch.setitem(main.COMMANDS, "fail", ("a_command", ""))
    assert main.main(["fail"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/below: Not a directory\n"


def test_a_mistyped_command_is_one_line(capsys):
    assert main.main(["transscribe"]) == 2
    assert capsys.readouterr().err == "error: espnet-lmu has no command transscribe; did you mean transcribe?\n"
    assert main.main(["qqq", "--help"]) == 2
    assert "did you mean bench, doctor, " in capsys.readouterr().err


def test_full_disks_are_named(tmp_path):
    for name in ("ref", "hyp"):
        (tmp_path / name).write_text("a LOW\n")
    command = [sys.executable, "-m", "espnet_lmu.bin.main", "score", str(tmp_path / "ref"), str(tmp_path / "hyp")]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and result.stderr == "error: standard output: No space left on device\n"
    with pytest.raises(OSError, match=f"{tmp_path}"), naming(tmp_path):
        raise OSError(28, "No space left on device")


def test_a_closed_stream_is_no_failure(tmp_path):
    for name in ("ref", "hyp"):
        (tmp_path / name).write_text("a LOW\n")
    command = f"{sys.executable} -m espnet_lmu.bin.main score {tmp_path}/ref {tmp_path}/hyp"
    assert subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True).stderr == ""
    for closed in (">&-", "2>&-"):
        assert subprocess.run(f"{command} {closed}", shell=True, stdout=subprocess.PIPE).returncode == 0


def test_sigterm_leaves_no_temporary_folder(tmp_path):
    code = """
import sys, tempfile, time
from types import SimpleNamespace
from espnet_lmu.bin import main

def run(args):
    folder = tempfile.TemporaryDirectory()
    print(folder.name, flush=True)
    time.sleep(100)

sys.modules["a_command"] = SimpleNamespace(add_arguments=lambda parser: None, run=run)
main.COMMANDS["wait"] = ("a_command", "")
sys.exit(main.main(["wait"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors == "" and not folder.exists()


def test_letters_that_a_terminal_lacks_are_spelled():
    code = """
import sys
from types import SimpleNamespace
from espnet_lmu.bin import main

sys.modules["a_command"] = SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: print("\\u65e5"))
main.COMMANDS["say"] = ("a_command", "")
sys.exit(main.main(["say"]))
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"\\u65e5\n", b"")
