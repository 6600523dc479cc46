"""The tables of `espnet-lmu bench`: text for people, a dictionary for programs."""

from __future__ import annotations

import platform

import torch

from espnet_lmu.bench.cases import Comparison
from espnet_lmu.bench.floor import Speed
from espnet_lmu.hardware import cpu_name


def machine(device: torch.device) -> dict:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _floor(comparison: Comparison, name: str, speed: Speed) -> float | None:
    if name not in comparison.operations:
        return None
    return max(comparison.operations[name] / speed.operations, comparison.bytes.get(name, 0) / speed.bytes)


def as_dictionary(comparison: Comparison, speed: Speed) -> dict:
    """One comparison; times in seconds, floors too, at the speed of the device in the comparison's type."""
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
                "operations": comparison.operations.get(name),
                "bytes": comparison.bytes.get(name),
                "floor": _floor(comparison, name, speed),
                "peak_bytes": comparison.peak_bytes.get(name),
                "audio_seconds": comparison.audio_seconds.get(name),
            }
            for name, timing in comparison.timings.items()
        ],
    }


def _throughput(entry: dict) -> str:
    return f"{entry['audio_seconds'] / 3600 / entry['median']:.2g}" if entry["audio_seconds"] else ""


def as_text(comparison: dict) -> str:
    """A Markdown table of one comparison, a dictionary of `as_dictionary`; columns that no entry fills are left out."""
    columns = {
        "what": lambda entry: entry["name"],
        f"time / {comparison['reference']}": lambda entry: f"{entry['ratio']:.2f}",
        "median ms": lambda entry: f"{1e3 * entry['median']:.1f}",
        "quartiles ms": lambda entry: f"{1e3 * entry['low']:.1f} to {1e3 * entry['high']:.1f}",
        "GFLOP of products": lambda entry: f"{entry['operations'] / 1e9:.2f}" if entry["operations"] else "",
        "floor ms": lambda entry: f"{1e3 * entry['floor']:.1f}" if entry["floor"] else "",
        "peak MB": lambda entry: f"{entry['peak_bytes'] / 2**20:.0f}" if entry["peak_bytes"] else "",
        "hours of audio a second": _throughput,
    }
    cells = {title: [fill(entry) for entry in comparison["entries"]] for title, fill in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    rows = [list(cells), ["---", *["---:"] * (len(cells) - 1)], *zip(*cells.values(), strict=True)]
    lines = [f"### {comparison['title']}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join([*lines, *(line for note in comparison["notes"] for line in (note, ""))])
