"""How stored features were computed: a record beside them, and beside every model that was trained on them.

An experiment's ``config.yaml`` says how many features a frame has, and nothing else about them. Without the record a
model would be given other features than those it was trained on, and would err more without a word.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import yaml

from espnet_lmu.data.files import atomic_open, read_yaml
from espnet_lmu.errors import UserError

FEATURES = "features.yaml"


def write_features(directory: Path, settings: dict | None) -> None:
    """Write the record of a data directory or an experiment; None removes that of an earlier run."""
    if settings is None:
        (directory / FEATURES).unlink(missing_ok=True)
        return
    with atomic_open(directory / FEATURES) as stream:
        yaml.safe_dump(settings, stream, sort_keys=False)


def read_features(directory: Path) -> dict | None:
    """The record of a data directory or an experiment; None if it has none."""
    return read_yaml(directory / FEATURES) if (directory / FEATURES).exists() else None


def load_features(location: str) -> np.ndarray:
    """The features (frames, D) of an entry of ``feats.scp``, FILE:OFFSET.

    Raises:
        UserError: the file is missing, cut off or no archive of features.
    """
    import kaldiio

    try:
        return kaldiio.load_mat(location)
    except (OSError, ValueError, EOFError, AssertionError, struct.error) as error:
        reason = str(error) or "cut off, or no archive"
        raise UserError(f"{location}: features cannot be read ({reason}); run stage 3 again") from None


def check_features(name: str, trained: dict | None, given: dict | None, place: str) -> None:
    """Check that a model is given the features that it was trained on; a warning is printed where one has no record.

    Args:
        name: of the model, in messages.
        trained: the record of what it was trained on.
        given: the record of what it is given.
        place: where that comes from, such as a data directory.

    Raises:
        UserError: the two differ.
    """
    if trained == given:
        return
    if trained is None or given is None:
        unknown = name if trained is None else place
        print(
            f"warning: {unknown}: no {FEATURES}, perhaps of an earlier version; if the features of {name} and {place} "
            "are not the same, it errs more than it should",
            file=sys.stderr,
        )
        return
    different = ", ".join(
        f"{key} {trained.get(key)} there and {given.get(key)} here"
        for key in trained | given
        if trained.get(key) != given.get(key)
    )
    raise UserError(f"{name}: its features are not those of {place}: {different}; make it again, from stage 3 on")
