"""The tables of `espnet-lmu bench`: text for people, a dictionary for programs."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from espnet_lmu.bench.cases import Comparison


def machine(device: torch.device) -> dict:
    """What the figures were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def as_dictionary(comparison: Comparison, speed: float) -> dict:
    """One comparison; times in seconds, floors too (operations of matrix products / `speed` of the device)."""
    base = comparison.timings[comparison.reference].median
    return {
        "title": comparison.title,
        "reference": comparison.reference,
        "notes": list(comparison.notes),
        "entries": [
            {
                "name": name,
                "ratio": timing.median / base,
                **timing._asdict(),
                "operations": comparison.floors.get(name),
                "floor": comparison.floors[name] / speed if name in comparison.floors else None,
            }
            for name, timing in comparison.timings.items()
        ],
    }


def as_text(comparison: dict) -> str:
    """A Markdown table of one comparison, a dictionary of `as_dictionary`."""
    lines = [
        f"### {comparison['title']}",
        "",
        f"| what | time / {comparison['reference']} | median ms | quartiles ms | GFLOP of products | floor ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in comparison["entries"]:
        known = entry["floor"] is not None
        operations = f"{entry['operations'] / 1e9:.2f}" if known else ""
        floor = f"{1e3 * entry['floor']:.1f}" if known else ""
        lines.append(
            f"| {entry['name']} | {entry['ratio']:.2f} | {1e3 * entry['median']:.1f} "
            f"| {1e3 * entry['low']:.1f} to {1e3 * entry['high']:.1f} | {operations} | {floor} |"
        )
    return "\n".join([*lines, "", *comparison["notes"], *([""] if comparison["notes"] else [])])
