"""Loading a trained ESPnet model for inference, with every parameter accounted for."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

from espnet_lmu.data.files import shorten
from espnet_lmu.errors import UserError
from espnet_lmu.hook import ignore_espnets_warnings


def load_asr_model(config_file: str | Path, model_file: str | Path, device: str = "cpu"):
    """Build the model that ``config.yaml`` describes and load its weights, strictly.

    ESPnet itself loads with ``strict=False``: parameters that the file lacks, or calls otherwise, would stay random.

    Returns:
        the ESPnetASRModel in evaluation mode; the Namespace of its configuration.

    Raises:
        UserError: the device is not there, the weights are damaged or not the model's, or the configuration, or a file
            that it names, is missing or makes no model.
    """
    ignore_espnets_warnings()
    import torch

    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("give cpu, cuda or cuda:N")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: not to be had here ({str(error).splitlines()[0]})") from None
    from espnet2.tasks.asr import ASRTask

    logging.disable(logging.WARNING)  # that a CTC model has no decoder is no news
    try:
        model, args = ASRTask.build_model_from_file(config_file, None, device)
    except FileNotFoundError as error:
        raise UserError(
            f"{config_file} refers to {error.filename}, which is missing; paths there start at the recipe's directory"
        ) from None
    except Exception as error:  # a mistyped option, a damaged file of statistics: whatever the parts of a model raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{config_file}: no model can be made of it and the files that it names ({type(error).__name__}: {reason})"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    try:
        state = torch.load(model_file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{model_file}: not the weights of a model; checkpoint.pth, for one, holds more than them"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{model_file}: not a readable model file ({reason}); train or copy it again") from None
    if not isinstance(state, dict) or any(not isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{model_file}: not the weights of a model; checkpoint.pth, for one, holds more than them")
    check_parameters(model.state_dict(), state, model_file)
    model.load_state_dict(state)
    return model.eval(), args


def check_parameters(expected: dict, found: dict, path: str | Path) -> None:
    """Raise `UserError` if names or shapes in `found` (from the file `path`) are not those in `expected`."""
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing {shorten(missing)}")
    if unknown := [name for name in found if name not in expected]:
        problems.append(f"unknown {shorten(unknown)}")
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if shapes:
        problems.append(f"other shapes: {shorten(shapes)}")
    if problems:
        raise UserError(f"{path}: not the weights of the configured model: {'; '.join(problems)}")
