"""The models that a training starts from (ESPnet's ``init_param``), checked before it begins.

ESPnet loads what it finds: a part that the file has not, or features that its model never heard, pass without a word.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lmu.data.features import check_features, read_features
from espnet_lmu.data.files import read_yaml
from espnet_lmu.errors import UserError


def check_pretrained(arguments: list[str], data_dir: Path) -> None:
    """Check every ``PATH[:ITS PART[:OUR PART[:PARTS TO LEAVE OUT]]]`` of `init_param`.

    Args:
        arguments: those of asr_train, whose ``--init_param`` overrules the settings of its ``--config``.
        data_dir: the features that will be trained on.

    Raises:
        UserError: no such file or part, no weights in it, or a model of other features.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--init_param", nargs="*")
    known, _ = parser.parse_known_args(arguments)
    given = known.init_param
    if given is None and known.config is not None:
        given = read_yaml(known.config).get("init_param")
        if not isinstance(given, list | None):
            raise UserError(f"{known.config}: init_param {given}: give a list of them")
    for entry in given or []:
        name, part, *_ = f"{entry}::".split(":")
        _check_part(Path(name), part)
        check_features(name, read_features(Path(name).parent), read_features(data_dir), str(data_dir))


def _check_part(path: Path, part: str) -> None:
    import torch

    if not path.is_file():
        raise UserError(
            f"init_param {path}: no such file (relative paths start at {Path.cwd()}); train that model first, or give "
            "another one with --pretrained_model"
        )
    try:
        weights = torch.load(path, map_location="meta", weights_only=False)
        names = list(weights.get("module", weights))
    except Exception as error:  # unpickling of other files can raise any
        raise UserError(f"init_param {path}: not the weights of a model, or damaged ({type(error).__name__})") from None
    # As ESPnet does, by the beginning of the names.
    if part and not any(name.startswith(part) for name in names):
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise UserError(f"init_param {path}: it has no {part}; its parts are {parts}")
