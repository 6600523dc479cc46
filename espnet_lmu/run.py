"""Run an ESPnet command with the LMU encoder registered: ``python -m espnet_lmu.run -m espnet2.bin.asr_train ...``.

ESPnet's distributed training spawns its workers; a spawned process imports the parent's ``__main__`` module
again, and that is this file: importing the package, below, registers the encoder there too. It must not become
``__main__.py`` (never imported again) and must leave ``sys.modules["__main__"]`` alone (`runpy`'s `alter_sys`).
"""

from __future__ import annotations

import importlib.util
import runpy
import sys

from espnet_lmu import hook  # importing the package registers the encoder, in spawned workers too

hook.ignore_espnets_warnings()


def main() -> None:
    argv = sys.argv[1:]
    if len(argv) < 2 or argv[0] != "-m":
        sys.exit("usage: python -m espnet_lmu.run -m espnet2.bin.COMMAND [ARGUMENT ...]")
    try:
        found = importlib.util.find_spec(argv[1]) is not None
    except ModuleNotFoundError:  # of the package that the module would be in
        found = False
    if not found:
        sys.exit(f"error: {argv[1]}: no such Python module; ESPnet's commands are in espnet2.bin")
    hook.speed_up_tasks()
    sys.argv = argv[1:]
    runpy.run_module(argv[1], run_name="__main__")


if __name__ == "__main__":
    main()
