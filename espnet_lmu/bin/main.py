"""`espnet-lmu COMMAND ...`: the command line. Each command is a module of this folder, imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import os
import signal
import sys
import threading

from espnet_lmu.errors import UserError

# command -> (module with add_arguments(parser) and run(args), one-line help)
COMMANDS = {
    "bench": ("espnet_lmu.bin.bench", "speed of the LMU and its encoder against LSTM, Conformer and others"),
    "doctor": ("espnet_lmu.bin.doctor", "whether this environment has what training, decoding and the extras need"),
    "export": ("espnet_lmu.bin.export", "a trained model as ONNX or TorchScript files, for whole audio or streaming"),
    "cost": ("espnet_lmu.bin.cost", "hours, GPUs and storage of training on LibriSpeech 960"),
    "params": ("espnet_lmu.bin.params", "parameter table, size and training memory of a training configuration"),
    "report": ("espnet_lmu.bin.report", "RESULTS.md and an HTML page of an experiment's results, made anew"),
    "score": ("espnet_lmu.bin.score", "WER, CER and TER of a hypothesis file against a reference"),
    "serve": ("espnet_lmu.bin.serve", "a page for the browser with live captions of a microphone or a file"),
    "stream": ("espnet_lmu.bin.stream", "text of a file, a pipe or a microphone while it is spoken, and the latency"),
    "transcribe": ("espnet_lmu.bin.transcribe", "recordings to text, JSON, subtitles or CTM, with the times of words"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser with the arguments of `command` only: the others' modules stay unimported."""
    parser = argparse.ArgumentParser(prog="espnet-lmu", description="Tools around ESPnet's `encoder: lmu`.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, description) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=description, description=description)
        if name == command:
            importlib.import_module(module).add_arguments(subparser)
    return parser


def _drop_output() -> None:
    """Let what is still to be written go nowhere; at its end Python would try once more, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(signal_number: int, _frame: object) -> None:
    sys.exit(128 + signal_number)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the status is 0, 1 after an error that has its line, 2 after a wrong argument."""
    argv = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters
    if threading.current_thread() is threading.main_thread():
        # Slurm, systemd and `timeout` end it so; without an exit, unpacked models would stay in the temporary folder.
        signal.signal(signal.SIGTERM, _end)
    command = next((word for word in argv if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1) or [", ".join(COMMANDS)]
        print(f"error: espnet-lmu has no command {command}; did you mean {near[0]}?", file=sys.stderr)
        return 2
    args = build_parser(command).parse_args(argv)
    try:
        status = importlib.import_module(COMMANDS[args.command][0]).run(args) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader (`head`, a closed pager) has what it wanted
        return 0
    except OSError as error:
        name = error.filename
        if name is None and error.errno == errno.ENOSPC:  # what goes to files has a name
            name = "standard output"
            _drop_output()
        print(f"error: {f'{name}: ' if name else ''}{error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
