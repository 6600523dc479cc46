"""How stored features were computed: a record beside them, and beside every model that was trained on them.

An experiment's ``config.yaml`` says how many features a frame has, and nothing else about them. Without the record a
model would be given other features than those it was trained on, and would err more without a word.
"""

from __future__ import annotations

from pathlib import Path

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


def differences(settings: dict, others: dict) -> str:
    """Where two records differ, in words; empty if nowhere."""
    names = [name for name in settings | others if settings.get(name) != others.get(name)]
    return ", ".join(f"{name} {settings.get(name)} in place of {others.get(name)}" for name in names)


def check_features(experiment: Path, data_dir: Path) -> None:
    """Check that a model is given the features that it was trained on.

    Raises:
        UserError: the records of the experiment and of the data differ, or one of the two has none.
    """
    trained, stored = read_features(experiment), read_features(data_dir)
    if trained is not None and stored is not None and (different := differences(trained, stored)):
        raise UserError(
            f"{experiment}: trained on other features than those of {data_dir}: {different}; train again, or format "
            "the data as it was (stage 3)"
        )
    if trained is None and stored is not None:
        raise UserError(
            f"{experiment}: trained on features that have no record, perhaps by an earlier version; train again, or, "
            f"if they are those of {data_dir}, copy its {FEATURES} to the experiment"
        )
    if trained is not None and stored is None:
        raise UserError(
            f"{data_dir}: its features have no {FEATURES}, perhaps from an earlier version; run stage 3 again"
        )
