"""Make an experiment safe to resume: ``python -m espnet_lmu.training.resume EXPDIR [ARGUMENT OF asr_train ...]``.

It mends what a kill left behind, and with arguments refuses those of another model: ESPnet would write its settings
over those of the trained one, which then can no longer be decoded. Nothing is done to a new experiment.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from espnet_lmu.data.files import command_line, read_yaml, shorten
from espnet_lmu.errors import UserError
from espnet_lmu.training.checkpoint import repair

# What weights belong to. Other settings may change: number of epochs, batches, augmentation.
_OF_THE_MODEL = ("input_size", "frontend_conf", "normalize", "encoder", "encoder_conf", "decoder", "decoder_conf")
_OF_THE_MODEL += ("model_conf", "token_list", "init_param")


def _difference(name: str, trained: Any, given: Any) -> str:
    """What of a setting differs, in a few words."""
    if isinstance(trained, dict) and isinstance(given, dict):
        keys = [key for key in {**trained, **given} if trained.get(key) != given.get(key)]
        return shorten([_difference(f"{name} {key}", trained.get(key), given.get(key)) for key in keys])
    if name == "token_list":
        return "other tokens"
    return f"{name} {trained}, not {given}"


def check_settings(directory: Path, arguments: list[str]) -> None:
    """Check that `arguments` of asr_train go on with the model of the experiment.

    Raises:
        UserError: they are of another one.
    """
    from espnet_lmu.hook import check_arguments, import_asr_train

    import_asr_train()
    from espnet2.tasks.asr import ASRTask

    parser = ASRTask.get_parser()
    check_arguments("asr_train", parser, arguments, "--asr_args or the training configuration")
    given = vars(parser.parse_args(arguments))
    if given["input_size"] is not None:
        given["frontend_conf"] = {}  # as ESPnet then writes it
    if isinstance(given["token_list"], str):
        given["token_list"] = Path(given["token_list"]).read_text(encoding="utf-8").splitlines()
    trained = read_yaml(directory / "config.yaml")
    for name in _OF_THE_MODEL:
        if name in trained and trained[name] != given[name]:
            difference = _difference(name, trained[name], given[name])
            raise UserError(
                f"{directory}: it was trained with {difference}; give --asr_tag NAME for another experiment"
            )
    epoch = re.match(r"(\d+)epoch\.pth", os.readlink(directory / "latest.pth"))
    if epoch and int(epoch[1]) >= given["max_epoch"]:
        print(f"{directory}: trained already, for {epoch[1]} of {given['max_epoch']} epochs")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.training.resume",
        usage="%(prog)s EXPDIR [ARGUMENT OF asr_train ...]",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, help="experiment folder (--output_dir of asr_train)")
    args, arguments = parser.parse_known_args()
    for line in repair(args.directory):
        print(line)
    if arguments and (args.directory / "checkpoint.pth").exists():
        check_settings(args.directory, arguments)


if __name__ == "__main__":
    command_line(main)
