"""The recordings that a command line names: files, folders of files, tables of Kaldi."""

from __future__ import annotations

import sys
from pathlib import Path

from espnet_lmu.data.files import shorten
from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.errors import UserError

# Names under which soundfile's formats are found in folders; a file that is named itself is read whatever its name.
_SUFFIXES = frozenset(".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .w64 .wav".split())
# Recordings that soundfile cannot read.
_OTHER_SUFFIXES = frozenset(".aac .amr .m4a .mka .mkv .mov .mp4 .webm .wma".split())


def find_recordings(arguments: list[str]) -> dict[str, str]:
    """Paths of recordings by their name, in order.

    Args:
        arguments: audio files (named as given), folders (all audio files below them, named by the path from the
            folder), or Kaldi tables ending in .scp (named by their ids).

    Raises:
        UserError: a folder has no audio, a table cannot be read, two recordings have one name, a name is not UTF-8.
    """
    recordings: dict[str, str] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
            found = {name: str(file) for name, file in files.items() if file.suffix.lower() in _SUFFIXES}
            others = [name for name, file in files.items() if file.suffix.lower() in _OTHER_SUFFIXES]
            if others:
                print(f"{argument}: not read: {shorten(others)}; convert to WAV or FLAC", file=sys.stderr)
            if not found:
                raise UserError(f"{argument}: no audio files in this folder")
        elif path.suffix == ".scp":
            found = read_table(path)
            if path.with_name("segments").exists():
                print(
                    f"{argument}: recordings are transcribed whole; {path.with_name('segments')} is not used",
                    file=sys.stderr,
                )
        else:
            found = {argument: argument}
        for name in found:
            if name.encode(errors="replace").decode() != name:  # surrogates stand for other bytes
                raise UserError(f"{ascii(name)}: this name is not UTF-8; rename the file")
        if twice := next((name for name in found if name in recordings), None):
            if Path(found[twice]).resolve() == Path(recordings[twice]).resolve():
                raise UserError(f"{twice}: given twice")
            raise UserError(
                f"{recordings[twice]} and {found[twice]} would both be called {twice}; give a folder above both"
            )
        recordings |= found
    return recordings


def output_files(names: list[str], directory: Path, suffix: str) -> dict[str, Path]:
    """The file in `directory` for each recording: its name without the audio's suffix, and without a path outside.

    Raises:
        UserError: two recordings would be written to one file.
    """
    files: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    for name in names:
        path = Path(name)
        if path.name in ("", ".."):
            raise UserError(f"{name}: a recording of this name has no file to be written to; rename it")
        if path.is_absolute() or ".." in path.parts:
            path = Path(path.name)
        if path.suffix.lower() in _SUFFIXES:
            path = path.with_suffix("")
        files[name] = directory / path.with_name(path.name + suffix)
        if files[name] in owners:
            raise UserError(f"{owners[files[name]]} and {name} would both be written to {files[name]}; rename one")
        owners[files[name]] = name
    return files
