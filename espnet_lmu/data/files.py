"""Files that are either complete or absent, and the frame of the stages' command lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import yaml

from espnet_lmu.errors import UserError


@contextlib.contextmanager
def naming(name: str | Path) -> Iterator[None]:
    """Give an error of a file operation that has no file name, as that of a full disk, this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(name)
        raise


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[TextIO]:
    """Open `path` for writing UTF-8 text; it appears under its name only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # names have 255 bytes at most
    try:
        with naming(path), open(temporary, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_yaml(path: Path, name: str | None = None) -> dict:
    """A YAML mapping, read by safe load; an empty file is an empty one. Messages call the file `name`, if given.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    name = name or str(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{name}: cannot be read: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{name}: expected lines of NAME: VALUE")
    return content


def parse_rate(text: str) -> int:
    """Sampling rate in Hz of ESPnet's spelling, ``16k`` or ``16000``."""
    try:
        rate = float(text[:-1]) * 1000 if text[-1:] in ("k", "K") else float(text)
        if rate < 1 or rate != int(rate):
            raise ValueError
    except ValueError:
        raise UserError(f"--fs {text}: give a sampling rate such as 16k or 16000") from None
    return int(rate)


def shorten(names: list[str], limit: int = 3) -> str:
    """The first `limit` names, for a one-line message, and how many follow."""
    text = ", ".join(names[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text


def command_line(main: Callable[[], int | None]) -> None:
    """Run a module's `main`; a `UserError` or a failed file operation becomes one line and exit status 1."""
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        # a full disk, no permission: what was finished stays, and running the command again goes on from there
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}; run this again once that is mended")
    except KeyboardInterrupt:
        sys.exit(130)
