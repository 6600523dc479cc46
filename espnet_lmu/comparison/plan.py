"""What a comparison trains: every encoder at every learning rate with the first seed, then, at its best rate, with the
other seeds."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_lmu.data.files import atomic_open, read_yaml
from espnet_lmu.errors import UserError


@dataclass(frozen=True)
class Run:
    """One training: an encoder of the comparison, a learning rate and a seed; `directory` is its experiment."""

    encoder: str
    learning_rate: float
    seed: int
    directory: Path


def read_encoder(path: Path) -> dict:
    """The settings `encoder` and `encoder_conf` of a file that has nothing else; all else belongs to the protocol."""
    content = read_yaml(path)
    if set(content) != {"encoder", "encoder_conf"}:
        raise UserError(f"{path}: expected encoder and encoder_conf alone, found {', '.join(map(str, content))}")
    return content


def training_settings(training: dict, encoder: dict, learning_rate: float, seed: int) -> dict:
    """The shared training settings with an encoder, the learning rate (the peak of a schedule) and the seed."""
    settings = copy.deepcopy(training) | encoder | {"seed": seed}
    settings["optim_conf"] = (settings.get("optim_conf") or {}) | {"lr": learning_rate}
    schedule = settings.get("scheduler_conf") or {}
    if "max_lr" in schedule:
        if "min_lr" in schedule:
            schedule["min_lr"] *= learning_rate / schedule["max_lr"]
        schedule["max_lr"] = learning_rate
    return settings


def make_run(root: Path, encoder: str, learning_rate: float, seed: int) -> Run:
    return Run(encoder, learning_rate, seed, root / f"{encoder}_lr{learning_rate:g}_seed{seed}")


def write_settings(run: Run, settings: dict) -> Path:
    """Write the settings of a run into its directory.

    Returns:
        the file.

    Raises:
        UserError: the directory holds a run with other settings.
    """
    path = run.directory / "train.yaml"
    if path.exists():
        if read_yaml(path) != settings:
            raise UserError(f"{path}: from a run with other settings; remove {run.directory}, or give another --dir")
    else:
        with atomic_open(path) as stream:
            yaml.safe_dump(settings, stream, sort_keys=False)
    return path
