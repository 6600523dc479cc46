"""Checkpoints that a killed process or a full disk cannot spoil.

ESPnet's trainer writes `checkpoint.pth`, then `{N}epoch.pth`, straight onto their final names. Here each file is
written under a temporary name and renamed, and `repair` rebuilds an epoch file that a kill between the two kept
from being written. `claim` keeps a second training out of the experiment meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import ModuleType

from espnet_lmu.data.files import atomic_open, read_yaml
from espnet_lmu.errors import UserError

_PATIENCE = 20.0  # seconds for which `claim` waits: what a killed training leaves behind takes a moment to end


def atomic_save(obj, path, **kwargs) -> None:
    """`torch.save` to `path` such that `path` holds either its old content or all of the new one."""
    import torch

    if not isinstance(path, (str, os.PathLike)):
        torch.save(obj, path, **kwargs)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(obj, file, **kwargs)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write (a full disk) as a RuntimeError of its zip writer.
        raise UserError(f"{path}: cannot be written ({error}); free disk space or permissions, then resume") from error
    finally:
        temporary.unlink(missing_ok=True)


class _TorchWithAtomicSave(ModuleType):
    """`torch` as one ESPnet module sees it: everything as ever, but `save` is atomic."""

    def __init__(self, torch: ModuleType):
        super().__init__("torch")
        self._torch = torch

    save = staticmethod(atomic_save)

    def __getattr__(self, name: str):
        return getattr(self._torch, name)


class _AnyPath(type):
    """Takes every path for an instance: ESPnet checks its arguments' types by the module's `Path`."""

    def __instancecheck__(cls, instance) -> bool:
        return isinstance(instance, Path)


class _PathWithAtomicConfig(type(Path()), metaclass=_AnyPath):
    """`Path` as one ESPnet module sees it: everything as ever, but what is written to ``config.yaml`` is atomic."""

    def open(self, mode="r", *args, **kwargs):
        if self.name == "config.yaml" and mode == "w":
            return atomic_open(self)
        return super().open(mode, *args, **kwargs)


def write_config_atomically(module: ModuleType) -> None:
    """Make an ESPnet module (its global name `Path`) write ``config.yaml`` at once: each start of a training does."""
    module.Path = _PathWithAtomicConfig


def write_checkpoints_atomically(module: ModuleType) -> None:
    """Make the `torch.save` calls of an ESPnet module (its global name `torch`) atomic."""
    if not isinstance(module.torch, _TorchWithAtomicSave):
        module.torch = _TorchWithAtomicSave(module.torch)


def claim(directory: Path) -> None:
    """Keep other trainings out of an experiment until this process, and what it forks, has ended.

    Raises:
        UserError: another training is in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = os.open(directory / ".training.lock", os.O_CREAT | os.O_RDWR, 0o666)  # closed, so unlocked, by the end
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{directory}: a training of this experiment is running; wait for its end, or give --asr_tag NAME "
                    "for another experiment"
                ) from None
            time.sleep(0.2)
        except OSError:
            return  # a file system without locks


def _link(directory: Path, name: str, target: str) -> bool:
    """Point the symbolic link `name` at `target`; tell whether that changed anything."""
    link = directory / name
    if link.is_symlink() and os.readlink(link) == target:
        return False
    temporary = directory / f".{name}.{os.getpid()}.tmp"
    temporary.symlink_to(target)
    os.replace(temporary, link)
    return True


def read_config(directory: Path) -> dict | None:
    """The experiment's `config.yaml`, which the next start writes anew; None if it cannot be read."""
    try:
        return read_yaml(directory / "config.yaml") or None
    except UserError:
        return None


def _best_epochs(directory: Path, stats: dict) -> dict[str, int]:
    """Link name -> best epoch, for each of the experiment's `best_model_criterion`."""
    best = {}
    for phase, key, mode in (read_config(directory) or {}).get("best_model_criterion", []):
        values = {epoch: stat[phase][key] for epoch, stat in stats.items() if key in stat.get(phase, {})}
        if values:
            best[f"{phase}.{key}.best.pth"] = (min if mode == "min" else max)(values, key=values.__getitem__)
    return best


def repair(directory: str | os.PathLike) -> list[str]:
    """Make a killed training in `directory` resumable; return what was done, a sentence each.

    Temporary files are removed. ESPnet writes `checkpoint.pth`, then the epoch's weights, then the links
    `latest.pth` and `valid.loss.best.pth`; what a kill between them left out is made from the checkpoint (the
    averaging at the end needs it). An experiment without a checkpoint has nothing to repair.

    Raises:
        UserError: `checkpoint.pth` cannot be read.
    """
    import torch

    directory = Path(directory)
    done = []
    for temporary in directory.glob(".*.pth.*.tmp"):
        temporary.unlink()
        done.append(f"removed the unfinished {temporary}")
    checkpoint = directory / "checkpoint.pth"
    if not checkpoint.exists():
        return done
    try:
        # Optimizer and reporter states hold more than tensors; the file is the user's own training state.
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)
        epoch, stats, model = state["reporter"]["epoch"], state["reporter"]["stats"], state["model"]
    except Exception as error:
        raise UserError(
            f"{checkpoint}: not a readable checkpoint ({type(error).__name__}); "
            "restore it, or delete it to train from the start"
        ) from error
    weights = directory / f"{epoch}epoch.pth"
    if not weights.exists():
        atomic_save(model, weights)
        done.append(f"rebuilt {weights} from {checkpoint.name}")
    for name, target in {"latest.pth": epoch, **_best_epochs(directory, stats)}.items():
        if (directory / f"{target}epoch.pth").exists() and _link(directory, name, f"{target}epoch.pth"):
            done.append(f"linked {directory / name} to {target}epoch.pth")
    return done
