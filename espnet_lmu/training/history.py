"""What a training left in ``checkpoint.pth``: times and results of its epochs, and how many parameters it trained."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path

from espnet_lmu.errors import UserError


@dataclass
class Epoch:
    """Seconds of an epoch, validation included, its mean losses, and the error rate of the validation set in percent.

    None stands for what the model does not report. The error rate is that of characters, by greedy CTC.
    """

    number: int
    seconds: float
    train_loss: float | None
    valid_loss: float | None
    valid_cer: float | None


@dataclass
class History:
    """The epochs of a training, and the trained parameters (None where the optimizer keeps no averages of them)."""

    epochs: list[Epoch]
    parameters: int | None

    @property
    def seconds(self) -> float:
        """Time of all epochs; of interrupted ones only the last attempt counts."""
        return sum(epoch.seconds for epoch in self.epochs)


def read_history(experiment: Path) -> History:
    """Read ``checkpoint.pth`` of an experiment.

    Raises:
        UserError: it is missing or damaged.
    """
    import torch

    path = experiment / "checkpoint.pth"
    try:
        # ESPnet 202511 stores times as timedelta objects; the file is the user's own training state.
        state = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
        stats = state["reporter"]["stats"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run stage 11 first") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
        raise UserError(f"{path}: not the state of a training, or damaged; run stage 11 again") from None
    epochs = []
    for number, phases in sorted(stats.items()):
        train, valid = phases.get("train", {}), phases.get("valid", {})
        seconds = sum(_seconds(phase["time"]) for phase in phases.values() if "time" in phase)
        rate = _finite(valid.get("cer_ctc"))
        rate = None if rate is None else 100 * rate
        epochs.append(Epoch(number, seconds, _finite(train.get("loss")), _finite(valid.get("loss")), rate))
    return History(epochs, _count_parameters(state.get("optimizers", [])))


def _seconds(time) -> float:
    """Of a timedelta, or of what ESPnet 202611 stores in place of one."""
    return time["__timedelta_seconds__"] if isinstance(time, dict) else time.total_seconds()


def _finite(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _count_parameters(optimizers: list[dict]) -> int | None:
    # The weights themselves are stored beside buffers, which only the model could tell from them; optimizers keep
    # averages of the gradients of parameters, in their shape.
    states = [state for optimizer in optimizers for state in optimizer["state"].values()]
    averages = [[value for name, value in state.items() if name != "step"] for state in states]
    sizes = [max((value.numel() for value in own if hasattr(value, "numel")), default=0) for own in averages]
    return sum(sizes) if sizes and min(sizes) > 0 else None
