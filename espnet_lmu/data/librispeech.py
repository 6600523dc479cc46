"""LibriSpeech and Mini LibriSpeech (OpenSLR 12 and 31), downloaded and read by lhotse.

The name of a set is that of a part of the corpus with ``_`` for ``-``: ``dev_clean`` is the folder ``dev-clean``. Sets
of several parts are named as in ESPnet's recipe ``egs2/librispeech/asr1``: ``train_960``, ``train_460`` and ``dev``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import write_data_dir
from espnet_lmu.errors import UserError

UNIONS = {
    "train_460": ("train-clean-100", "train-clean-360"),
    "train_960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "dev": ("dev-clean", "dev-other"),
}


def parts_of(name: str) -> tuple[str, ...]:
    """Parts of the corpus that make up a set."""
    return UNIONS.get(name, (name.replace("_", "-"),))


def download(folder: Path, parts: list[str]) -> Path:
    """Fetch parts of the corpus to `folder`, those that are there excepted; returns the tree's root."""
    from lhotse.recipes import download_librispeech

    mini = {"train-clean-5", "dev-clean-2"}
    if (
        unknown := set(parts)
        - mini
        - {part for union in UNIONS.values() for part in union}
        - {
            "test-clean",
            "test-other",
        }
    ):
        raise UserError(f"{', '.join(sorted(unknown))}: no parts of LibriSpeech; correct the names of the sets")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return download_librispeech(folder, dataset_parts=parts)
    except OSError as error:
        raise UserError(
            f"LibriSpeech: download failed ({error}); start again to go on, or fetch it by other means and give it "
            "with LIBRISPEECH=PATH ./run.sh"
        ) from None


def read_part(root: Path, part: str) -> dict[str, dict[str, str]]:
    """Tables of one part of the corpus at `root`, the folder that holds the parts."""
    if not (root / part).is_dir():
        raise UserError(f"{root / part}: no such folder; give the folder LibriSpeech, which has {part} in it")
    from lhotse.recipes import prepare_librispeech

    try:
        # lhotse draws bars for what takes a second
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            manifests = prepare_librispeech(root, dataset_parts=[part])[part]
    except (OSError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{root / part}: cannot be read ({' '.join(str(error).split())}); unpack it again") from None
    recordings = {recording.id: recording.sources[0].source for recording in manifests["recordings"]}
    tables: dict[str, dict[str, str]] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    for supervision in manifests["supervisions"]:
        tables["wav.scp"][supervision.id] = str(recordings[supervision.recording_id])
        tables["text"][supervision.id] = supervision.text
        tables["utt2spk"][supervision.id] = supervision.speaker
    if not tables["text"]:
        raise UserError(f"{root / part}: no transcripts (SPEAKER/CHAPTER/*.trans.txt) with audio; unpack it again")
    return tables


def prepare(root: Path, output: Path, sets: list[str]) -> None:
    """Write `output`/SET of each set."""
    for name in sets:
        tables: dict[str, dict[str, str]] = {}
        for part in parts_of(name):
            for file, table in read_part(root, part).items():
                tables.setdefault(file, {}).update(table)
        write_data_dir(output / name, tables)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.data.librispeech", description=__doc__)
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="folder with train-clean-100, ... (downloaded)")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where downloads go (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("data"), help="where data directories go (%(default)s)")
    parser.add_argument("sets", metavar="SET", nargs="+", help="train_960, train_clean_100, dev, test_other, ...")
    args = parser.parse_args()
    sets = list(dict.fromkeys(args.sets))
    root = args.corpus
    if root is None:
        root = download(args.downloads, sorted({part for name in sets for part in parts_of(name)}))
    prepare(root, args.output, sets)


if __name__ == "__main__":
    command_line(main)
