"""Stage 14: pack an experiment into one file that needs nothing beside it."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path

import espnet_lmu
from espnet_lmu.data.features import read_features
from espnet_lmu.data.files import command_line, naming, parse_rate
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.model_files import (
    CONFIG,
    META,
    NAMED_FILES,
    RESULTS,
    TOKENS,
    WEIGHTS,
    dump_yaml,
    experiment_files,
    file_digest,
    name_files,
)

# Options of training that name files; without them the configuration builds the same model.
_TRAINING_FILES = {
    "config": None,
    "output_dir": None,
    "train_shape_file": [],
    "valid_shape_file": [],
    "train_data_path_and_name_and_type": [],
    "valid_data_path_and_name_and_type": [],
    "init_param": [],
    "pretrain_path": None,
    "rir_scp": None,
    "noise_scp": None,
    "non_linguistic_symbols": None,
}


def packed_files(experiment: Path, weights: str | None, rate: int, results: Path | None, folder: Path) -> None:
    """Lay the files of a packed model into `folder`.

    Args:
        experiment: folder of the experiment.
        weights: name of the weights' file in it; None for the average by the first criterion of its training.
        rate: sampling rate in Hz.
        results: Markdown that goes with the model.
        folder: empty.
    """
    config, weights_file, named = experiment_files(experiment, weights)
    features = read_features(experiment)
    if features is not None and features["rate"] != rate:
        raise UserError(f"--fs {rate}: {experiment} was trained on features of audio at {features['rate']} Hz")
    if config.get("input_size") is None:
        trained = parse_rate(str((config.get("frontend_conf") or {}).get("fs", "16k")))
        if trained != rate:
            raise UserError(f"--fs {rate}: {experiment} was trained on audio at {trained} Hz")
    shutil.copyfile(weights_file, folder / WEIGHTS)
    for place, path in named.items():
        shutil.copyfile(path, folder / NAMED_FILES[place])
    name_files(config, {place: NAMED_FILES[place] for place in named})
    config |= {option: value for option, value in _TRAINING_FILES.items() if option in config}
    (folder / CONFIG).write_text(dump_yaml(config), encoding="utf-8")
    (folder / TOKENS).write_text("".join(f"{token}\n" for token in config["token_list"]), encoding="utf-8")
    if results is not None:
        shutil.copyfile(results, folder / RESULTS)
    meta = {
        # what ESPnet's own tools look for
        "yaml_files": {"asr_train_config": CONFIG},
        "files": {"asr_model_file": WEIGHTS},
        "python": platform.python_version(),
        "torch": version("torch"),
        "espnet": version("espnet"),
        "espnet_lmu": espnet_lmu.__version__,
        "features": "raw" if config.get("input_size") is None else "fbank",
        "rate": rate,
        **({} if features is None else {"fbank": features}),
        "sha256": {path.name: file_digest(path) for path in sorted(folder.iterdir())},
    }
    (folder / META).write_text(dump_yaml(meta), encoding="utf-8")


def pack(experiment: Path, output: Path, weights: str | None, rate: int, results: Path | None) -> None:
    """Pack an experiment into the file `output`; the arguments are those of `packed_files`.

    The same files give the same archive, byte for byte.
    """
    folder = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        with naming(output):
            packed_files(experiment, weights, rate, results, folder)
            archive_file = folder / output.name
            members = sorted(folder.iterdir())
            with zipfile.ZipFile(archive_file, "w", zipfile.ZIP_STORED) as archive:
                for path in members:
                    entry = zipfile.ZipInfo(path.name)  # dated 1980, by default
                    entry.file_size = path.stat().st_size
                    entry.external_attr = 0o644 << 16
                    with open(path, "rb") as source, archive.open(entry, "w") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
        os.replace(archive_file, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.recognition.pack", description=__doc__)
    parser.add_argument("--asr_model_file", metavar="NAME", help="weights, in EXPDIR (default: the average)")
    parser.add_argument("--fs", default="16k", help="sampling rate of the model, e.g. 16k (%(default)s)")
    parser.add_argument("--results", type=Path, metavar="MD", help="results to pack with the model")
    parser.add_argument("experiment", metavar="EXPDIR", type=Path, help="folder of the experiment")
    parser.add_argument("output", metavar="FILE", type=Path, help="file to write")
    args = parser.parse_args()
    if args.results is not None and not args.results.is_file():
        raise UserError(f"--results {args.results}: no such file")
    pack(args.experiment, args.output, args.asr_model_file, parse_rate(args.fs), args.results)
    size, name = args.output.stat().st_size, shlex.quote(str(args.output))
    print(f"{args.output}: {size / 2**20:.1f} MB; try: espnet-lmu transcribe {name} AUDIO")


if __name__ == "__main__":
    command_line(main)
