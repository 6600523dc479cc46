"""The bar of long work."""

from __future__ import annotations

import sys
from collections.abc import Iterable

_SECONDS_BETWEEN_LINES = 60.0


class _Log:
    """A stream in which what tqdm draws over itself are lines."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable: Iterable | None = None, **options):
    """tqdm's bar on a terminal; in a log file a line at the start, one a minute and one at the end.

    Args:
        iterable: what to go through; None to call `update` on the result.
        options: tqdm's.
    """
    from tqdm import tqdm

    if not sys.stderr.isatty():
        options |= {"file": _Log(), "mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": _SECONDS_BETWEEN_LINES}
        options |= {"ascii": True, "ncols": 80}
        return tqdm(iterable, **options)
    return tqdm(iterable, dynamic_ncols=True, **options)
