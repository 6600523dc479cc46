"""Make an experiment safe to resume: ``python -m espnet_lmu.training.resume EXPDIR [ARGUMENT OF asr_train ...]``.

It mends what a kill left behind, and with arguments refuses those of another model or optimizer. ESPnet would write
their settings over those of the trained one, which then can no longer be decoded, or has not been trained with what is
written there. Nothing is done to a new experiment.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any

from espnet_lmu.data.files import command_line, shorten
from espnet_lmu.errors import UserError
from espnet_lmu.training.checkpoint import claim, read_config, repair
from espnet_lmu.training.settings import check_training

# What weights belong to, and what goes on as the checkpoint holds it, whatever is given. Other settings may change:
# number of epochs, batches, augmentation.
_PARTS = ("frontend", "normalize", "preencoder", "encoder", "postencoder", "decoder", "model", "adapter")
_FIXED = ("input_size", "token_list", "init_param", "use_adapter", "ctc_conf", "joint_net_conf")
_FIXED += tuple(name for part in _PARTS for name in (part, f"{part}_conf"))
_FIXED += ("optim", "optim_conf", "exclude_weight_decay", "exclude_weight_decay_conf", "scheduler", "scheduler_conf")


def _difference(name: str, trained: Any, given: Any) -> str:
    """What of a setting differs, in a few words."""
    if isinstance(trained, dict) and isinstance(given, dict):
        keys = [key for key in {**trained, **given} if trained.get(key) != given.get(key)]
        return shorten([_difference(f"{name} {key}", trained.get(key), given.get(key)) for key in keys])
    if name == "token_list":
        return "other tokens"
    return f"{name} {trained}, not {given}"


def _greatest(number: float | list[int]) -> float:
    return max(number, default=1) if isinstance(number, list) else number


def check_settings(directory: Path, arguments: list[str]) -> None:
    """Check that `arguments` of asr_train go on with the model of the experiment.

    Raises:
        UserError: they are of another one, or of another optimizer, or need weights that were not kept.
    """
    given = vars(check_training(arguments))
    if given["input_size"] is not None:
        given |= {"frontend": None, "frontend_conf": {}}  # as ESPnet then writes it
    if isinstance(given["token_list"], str):
        given["token_list"] = Path(given["token_list"]).read_text(encoding="utf-8").splitlines()
    trained = read_config(directory) or {}
    for settings in (given, trained):
        # Statistics of the same data may lie elsewhere; stage 11 knows those of other data.
        (settings.get("normalize_conf") or {}).pop("stats_file", None)
    for name in _FIXED:
        if name in trained and name in given and trained[name] != given[name]:
            difference = _difference(name, trained[name], given[name])
            raise UserError(
                f"{directory}: it was trained with {difference}; give --asr_tag NAME for another experiment"
            )
    epochs = int(re.match(r"(\d+)epoch\.pth", os.readlink(directory / "latest.pth"))[1])
    keep, kept = (_greatest(settings.get("keep_nbest_models", math.inf)) for settings in (given, trained))
    if keep > kept and epochs > kept:
        raise UserError(
            f"{directory}: it has kept the weights of its {kept} best epochs, so it cannot end with the {keep} best; "
            f"set keep_nbest_models: {kept}, or give --asr_tag NAME for another experiment"
        )
    if epochs >= given["max_epoch"]:
        print(f"{directory}: trained already, for {epochs} of {given['max_epoch']} epochs")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.training.resume",
        usage="%(prog)s EXPDIR [ARGUMENT OF asr_train ...]",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, help="experiment folder (--output_dir of asr_train)")
    args, arguments = parser.parse_known_args()
    if not args.directory.exists():
        return
    claim(args.directory)
    for line in repair(args.directory):
        print(line)
    if arguments and (args.directory / "checkpoint.pth").exists():
        check_settings(args.directory, arguments)


if __name__ == "__main__":
    command_line(main)
