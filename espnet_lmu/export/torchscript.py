"""TorchScript files: traced, run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from espnet_lmu.export.onnx_files import quiet_tracing


def write_torchscript(path: Path, graph: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Trace a graph with example inputs into a file for `torch.jit.load`."""
    with quiet_tracing(), torch.no_grad():
        torch.jit.trace(graph, example, check_trace=False).save(str(path))


def torchscript_file(path: Path) -> Callable[..., list[np.ndarray]]:
    """What runs a file: arrays to arrays, both in the graph's order."""
    module = torch.jit.load(str(path))

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(*map(torch.from_numpy, inputs))
        return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]

    return run
