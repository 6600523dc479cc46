"""Timing of several pieces of code side by side: in turns, so that all of them meet the same state of the machine."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call: median, and the quartiles on either side of it."""

    median: float
    low: float
    high: float


def time_in_turns(
    calls: dict[str, Callable[[], object]], device: torch.device, seconds: float, most_rounds: int = 50
) -> dict[str, Timing]:
    """Run every call once a round, each round starting with another one.

    Args:
        calls: what to time, by name.
        device: calls on a GPU are waited for.
        seconds: no round starts after this time; at least three rounds run, after one that does not count.
        most_rounds: no more rounds than this.

    Returns:
        The timing of each call.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}

    def measure(name: str) -> float:
        start = time.perf_counter()
        calls[name]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for name in names:
        measure(name)
    started = time.perf_counter()
    for number in range(most_rounds):
        if number >= 3 and time.perf_counter() - started > seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(measure(name))
    return {name: Timing(statistics.median(values), *_quartiles(values)) for name, values in samples.items()}


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def _spin(ready) -> None:
    ready.set()
    number = 0
    while True:
        number += 1


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that keeps one core busy for as long as the context lasts."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=_spin, args=(ready,), daemon=True)
    process.start()
    try:
        if not ready.wait(timeout=120):
            raise RuntimeError("the busy process did not start")
        yield
    finally:
        process.kill()
        process.join()
