"""Write down how a stage was started: ``python -m espnet_lmu.report.record FILE COMMAND ...``.

Each line of FILE is a JSON object of one start; starting the same command on the same hardware again adds none.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from espnet_lmu.data.files import atomic_open, command_line
from espnet_lmu.errors import UserError
from espnet_lmu.hardware import cpu_name

_ROOT = Path(__file__).resolve().parents[2]


class Start(NamedTuple):
    """A command as a shell takes it, from the repository's folder, and the CPU or GPUs that it ran on."""

    command: str
    hardware: str


def read_starts(path: Path) -> list[Start]:
    """The starts that a file records; none if there is no such file.

    Raises:
        UserError: a line is not what `record` writes.
    """
    try:
        return [Start(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise UserError(f"{path}: not a record of commands; remove it and run the stage again") from None


def record(path: Path, command: list[str], gpus: int, cmd: str) -> None:
    """Add a command, started in the current directory, to the file `path`."""
    starts = read_starts(path)
    program, *arguments = command
    command = [os.path.relpath(program), *arguments] if Path(program).is_absolute() else command
    start = Start(f"cd {shlex.quote(_place(Path.cwd()))} && {shlex.join(command)}", _hardware(gpus, cmd))
    if start not in starts:
        with atomic_open(path) as stream:
            stream.writelines(json.dumps(item._asdict()) + "\n" for item in [*starts, start])


def _place(directory: Path) -> str:
    """A directory as seen from the repository's folder, so that the command holds on other machines."""
    return str(directory.relative_to(_ROOT)) if directory.is_relative_to(_ROOT) else str(directory)


def _hardware(gpus: int, cmd: str) -> str:
    if cmd != "local":
        return f"{gpus} GPUs of {cmd}" if gpus else f"CPUs of {cmd}"
    if gpus:
        import torch

        if torch.cuda.is_available():
            return f"{gpus} x {torch.cuda.get_device_name()}"
    return f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.report.record", description=__doc__.split("\n")[0])
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs that it uses; 0: the CPU (%(default)s)")
    parser.add_argument("--cmd", default="local", help="what runs it; names the hardware if not local (%(default)s)")
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON lines, made where missing")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="program and its arguments")
    args = parser.parse_args()
    record(args.file, args.command, args.ngpu, args.cmd)


if __name__ == "__main__":
    command_line(main)
