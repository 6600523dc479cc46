"""Corpora that lhotse downloads and reads: LibriSpeech with Mini LibriSpeech, AISHELL-1 and TED-LIUM 3.

The name of a LibriSpeech set is that of a part of the corpus with ``_`` for ``-``: ``dev_clean`` is the folder
``dev-clean``. Sets of several parts are named as in ESPnet's recipe ``egs2/librispeech/asr1``: ``train_960``,
``train_460`` and ``dev``. The sets of AISHELL and TED-LIUM are ``train``, ``dev`` and ``test``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import logging
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from espnet_lmu.data.files import command_line, shorten
from espnet_lmu.data.kaldi_dir import read_table, write_data_dir
from espnet_lmu.errors import UserError

Manifests = dict[str, Any]  # lhotse's: {"recordings": ..., "supervisions": ...}


class Corpus(NamedTuple):
    """How a corpus is fetched and read."""

    title: str
    variable: str  # the environment variable that gives its folder
    parts: tuple[str, ...]  # those that can be downloaded
    folder: str  # of a part, in the corpus's folder; {part} stands for its name
    download: Callable[[Path, list[str]], Path]  # (where to, parts) -> the corpus's folder
    read: Callable[[Path, str, int], Manifests]  # (the corpus's folder, part, threads)
    unions: dict[str, tuple[str, ...]] = {}  # sets of several parts
    segments: bool = False  # utterances are parts of recordings
    clean: Callable[[str], str] = str  # from the corpus's transcripts to words

    def parts_of(self, name: str) -> tuple[str, ...]:
        """Parts of the corpus that make up a set."""
        return self.unions.get(name, (name.replace("_", "-"),))


def _download_librispeech(folder: Path, parts: list[str]) -> Path:
    from lhotse.recipes import download_librispeech

    return download_librispeech(folder, dataset_parts=parts)


def _read_librispeech(root: Path, part: str, threads: int) -> Manifests:
    from lhotse.recipes import prepare_librispeech

    audio = {path.stem for path in (root / part).rglob("*.flac")}
    transcribed = {key for path in (root / part).rglob("*.trans.txt") for key in read_table(path)}
    for lacking, what in ((transcribed - audio, "audio"), (audio - transcribed, "a line in a .trans.txt")):
        if lacking:
            which = f"{len(lacking)} utterances lack {what}: {shorten(sorted(lacking))}"
            raise UserError(f"{root / part}: {which}; unpack it again")
    return prepare_librispeech(root, dataset_parts=[part], num_jobs=threads)[part]


def _download_aishell(folder: Path, parts: list[str]) -> Path:
    from lhotse.recipes import download_aishell

    return download_aishell(folder)


@functools.cache  # lhotse reads all three parts at a time
def _aishell(root: Path) -> dict[str, Manifests]:
    from lhotse.recipes import prepare_aishell

    return prepare_aishell(root)


def _read_aishell(root: Path, part: str, threads: int) -> Manifests:
    return _aishell(root)[part]


def _download_tedlium(folder: Path, parts: list[str]) -> Path:
    from lhotse.recipes import download_tedlium

    return download_tedlium(folder)


def _read_tedlium(root: Path, part: str, threads: int) -> Manifests:
    # By default lhotse reads SPHERE files by the program sph2pipe.
    os.environ.setdefault("LHOTSE_AUDIO_BACKEND", "LibsndfileBackend")
    from lhotse.recipes import prepare_tedlium

    return prepare_tedlium(root, dataset_parts=[part], num_jobs=threads, normalize_text="kaldi")[part]


def _clean_tedlium(text: str) -> str:
    # As Kaldi's recipe: noises [...] and {...}, <sil> and <unk>, numbers of pronunciations as in "the(2)".
    return re.sub(r"\[[^\]]*\]|\{[^}]*\}|<[^>]*>|\(\d+\)", "", text)


CORPORA = {
    "librispeech": Corpus(
        title="LibriSpeech",
        variable="LIBRISPEECH",
        parts=(
            *("train-clean-100", "train-clean-360", "train-other-500"),
            *("dev-clean", "dev-other", "test-clean", "test-other"),
            *("train-clean-5", "dev-clean-2"),
        ),
        folder="{part}",
        unions={
            "train_460": ("train-clean-100", "train-clean-360"),
            "train_960": ("train-clean-100", "train-clean-360", "train-other-500"),
            "dev": ("dev-clean", "dev-other"),
        },
        download=_download_librispeech,
        read=_read_librispeech,
    ),
    "aishell": Corpus(
        title="AISHELL-1",
        variable="AISHELL",
        parts=("train", "dev", "test"),
        folder="data_aishell/wav/{part}",
        download=_download_aishell,
        read=_read_aishell,
    ),
    "tedlium3": Corpus(
        title="TED-LIUM 3",
        variable="TEDLIUM",
        parts=("train", "dev", "test"),
        folder="legacy/{part}",
        segments=True,
        download=_download_tedlium,
        read=_read_tedlium,
        clean=_clean_tedlium,
    ),
}


@contextlib.contextmanager
def _lhotses_warnings() -> Iterator[list[str]]:
    """Collect what lhotse warns of (utterances that it leaves out), a line each among thousands of others' progress."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(" ".join(record.getMessage().split()))
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def download(corpus: Corpus, folder: Path, parts: list[str]) -> Path:
    """Fetch parts of a corpus to `folder`, those that are there excepted; returns the corpus's folder."""
    unknown = sorted(set(parts) - set(corpus.parts))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no parts of {corpus.title}; correct the names of the sets")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return corpus.download(folder, parts)
    except (OSError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{corpus.title}: download failed ({reason}); start again to go on (if an archive stays damaged, delete it "
            f"from {folder}), or fetch it by other means and give it with {corpus.variable}=DIR ./run.sh"
        ) from None


def read_part(corpus: Corpus, root: Path, part: str) -> dict[str, dict[str, str]]:
    """Tables of one part of the corpus in the folder `root`."""
    folder = corpus.folder.format(part=part)
    if not (root / folder).is_dir():
        # From where a relative path starts, the recipe's folder, is not where the user is.
        path = os.path.abspath(root / folder)
        raise UserError(f"{path}: no such folder; give the folder of {corpus.title} that has {folder} in it")
    from lhotse.audio.utils import AudioLoadingError

    try:
        with _lhotses_warnings() as warnings:
            manifests = corpus.read(root, part, len(os.sched_getaffinity(0)))
    except UserError:
        raise
    except (OSError, ValueError, LookupError, AssertionError, RuntimeError, AudioLoadingError) as error:
        reason = shorten(str(error).split("\n"), 1)
        raise UserError(f"{root / folder}: cannot be read ({' '.join(reason.split())}); unpack it again") from None
    if warnings:
        print(f"warning: {root / folder}: lhotse warned {len(warnings)} times: {shorten(warnings)}", file=sys.stderr)
    paths = {recording.id: str(recording.sources[0].source) for recording in manifests["recordings"]}
    tables: dict[str, dict[str, str]] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    if corpus.segments:
        tables |= {"wav.scp": paths, "segments": {}}
    for supervision in manifests["supervisions"]:
        if corpus.segments:
            segment = f"{supervision.recording_id} {supervision.start:.6f} {supervision.end:.6f}"
            tables["segments"][supervision.id] = segment
        else:
            tables["wav.scp"][supervision.id] = paths[supervision.recording_id]
        tables["text"][supervision.id] = " ".join(corpus.clean(supervision.text).split())
        tables["utt2spk"][supervision.id] = supervision.speaker
    if not tables["text"]:
        raise UserError(f"{root / folder}: no transcripts with audio; unpack it again")
    return tables


def prepare(corpus: Corpus, root: Path, output: Path, sets: list[str]) -> None:
    """Write `output`/SET of each set."""
    for name in sets:
        tables: dict[str, dict[str, str]] = {}
        for part in corpus.parts_of(name):
            for file, table in read_part(corpus, root, part).items():
                tables.setdefault(file, {}).update(table)
        write_data_dir(output / name, tables)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.data.corpora", description=__doc__)
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="its folder (default: its variable, else download)")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where downloads go (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("data"), help="where data directories go (%(default)s)")
    parser.add_argument("name", metavar="CORPUS", choices=CORPORA, help=" or ".join(CORPORA))
    parser.add_argument("sets", metavar="SET", nargs="+", help="train_960, train_clean_100, dev, test_other, ...")
    args = parser.parse_args()
    corpus, sets = CORPORA[args.name], list(dict.fromkeys(args.sets))
    root = args.corpus or (Path(os.environ[corpus.variable]) if os.environ.get(corpus.variable) else None)
    if root is None:
        root = download(corpus, args.downloads, sorted({part for name in sets for part in corpus.parts_of(name)}))
    prepare(corpus, root, args.output, sets)


if __name__ == "__main__":
    command_line(main)
