"""`espnet-lmu COMMAND`: what a user sees of a command that fails."""

import sys
from types import SimpleNamespace

from espnet_lmu.bin import main


def test_a_failed_file_operation_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")

    def run(args) -> None:
        (tmp_path / "file" / "below").mkdir()

    command = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(sys.modules, "a_command", command)
    monkeypatch.setitem(main.COMMANDS, "fail", ("a_command", ""))
    assert main.main(["fail"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/below: Not a directory\n"
