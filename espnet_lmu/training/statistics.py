"""Stage 10: lengths of all utterances, and mean and variance of the features, computed in pieces.

ESPnet's asr_train with ``--collect_stats`` computes a piece; ESPnet is imported once, not once for each of them. The
pieces' sums are added in double precision: single precision, in which ESPnet adds, loses digits over 960 hours.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from espnet_lmu.data.features import FEATURES, load_features, read_features, write_features
from espnet_lmu.data.files import atomic_open, command_line
from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.errors import UserError
from espnet_lmu.hook import ignore_espnets_warnings, import_asr_train
from espnet_lmu.parallel import map_pieces
from espnet_lmu.progress import progress

_PIECE_SIZE = 2000  # training utterances: a few hours of speech
PARTS = ("train", "valid")
DATA_DIGEST = ".data"  # the digest of the data that statistics are of


def collect_piece(arguments: list[str], output_dir: str) -> None:
    """Statistics of the utterances in ``OUTPUT_DIR/keys.{train,valid}``, written below `output_dir`."""
    ignore_espnets_warnings()
    from espnet2.tasks.asr import ASRTask

    command = ["--collect_stats", "true", "--output_dir", output_dir, *arguments, "--ngpu", "0", "--num_workers", "0"]
    for part in PARTS:
        command += [f"--{part}_shape_file", f"{output_dir}/keys.{part}"]
    ASRTask.main(cmd=command)


def _split(keys: list[str], number: int) -> list[list[str]]:
    return [keys[len(keys) * i // number : len(keys) * (i + 1) // number] for i in range(number)]


def _name_damaged_features(scps: dict[str, Path], directories: list[Path]) -> None:
    """Raise a `UserError` that names what cannot be read of the pieces that failed, for ESPnet does not."""
    for part, scp in scps.items():
        if scp.name == "feats.scp":
            locations = read_table(scp)
            for directory in directories:
                for key in read_table(directory / f"keys.{part}"):
                    load_features(locations[key])


def _aggregate(directories: list[Path], output_dir: Path, vocabulary_size: int, token_type: str) -> None:
    """Join the pieces' tables and add their sums."""
    for part in PARTS:
        lists = {
            name: (directories[0] / part / name).read_text(encoding="utf-8").split()
            for name in ("batch_keys", "stats_keys")
        }
        for key in lists["batch_keys"]:
            shapes: dict[str, str] = {}
            for directory in directories:
                shapes |= read_table(directory / part / f"{key}_shape")
            write_table(output_dir / part / f"{key}_shape", shapes)
            if key == "text":
                # ESPnet reads the size of the vocabulary behind each length.
                shapes = {name: f"{length},{vocabulary_size}" for name, length in shapes.items()}
                write_table(output_dir / part / f"text_shape.{token_type}", shapes)
        for key in lists["stats_keys"]:
            pieces = [np.load(directory / part / f"{key}_stats.npz") for directory in directories]
            sums = {
                name: sum(np.asarray(piece[name], np.float64) for piece in pieces) for name in ("sum", "sum_square")
            }
            np.savez(output_dir / part / f"{key}_stats.npz", count=sum(piece["count"] for piece in pieces), **sums)


def _data_digest(scps: dict[str, Path], token_list: Path) -> str:
    """Of all that the statistics say of the data, whatever is trained on it."""
    names = ("text", "utt2num_samples", "feats_shape", FEATURES)
    tables = [path for scp in scps.values() for path in (scp, *map(scp.with_name, names)) if path.exists()]
    digest = hashlib.sha256()
    for path in [*tables, token_list]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def check_statistics(scps: dict[str, Path], token_list: Path, output_dir: Path) -> None:
    """Check that the data is what the statistics in `output_dir` were made of: ESPnet trains on what they list.

    Raises:
        UserError: it has changed since.
    """
    digest = _read(output_dir / DATA_DIGEST)
    if digest is None:
        raise UserError(f"{output_dir}: of an earlier version, which does not say of what data; run stage 10 again")
    if digest != _data_digest(scps, token_list):
        raise UserError(
            f"{output_dir}: statistics of other data than {' and '.join(str(scp.parent) for scp in scps.values())} and "
            f"{token_list} hold now; run stage 10 again"
        )


def collect_statistics(
    scps: dict[str, Path],
    token_list: Path,
    token_type: str,
    config: Path | None,
    arguments: list[str],
    output_dir: Path,
    **parallel,
) -> bool:
    """Write ``{train,valid}/{speech_shape,text_shape,text_shape.TYPE,feats_stats.npz,...}`` into `output_dir`.

    Args:
        scps: of the ``train`` and the ``valid`` utterances.
        config: training configuration; while it, the data and `arguments` stay, so do the statistics.
        arguments: of asr_train: data and model.
        parallel: nj, cmd and slurm_config of `map_pieces`.

    Returns:
        False if `output_dir` was complete already.
    """
    data = _data_digest(scps, token_list)
    digest = hashlib.sha256("\n".join([data, *arguments]).encode())
    if config:
        arguments = ["--config", str(config), *arguments]
        digest.update(config.read_bytes())
    stamp = digest.hexdigest()[:16]
    if _read(output_dir / ".stamp") == stamp:
        return False
    # It moves into place when complete; pieces of other data or arguments are of no use.
    unfinished = output_dir.with_name(f"{output_dir.name}.unfinished")
    if unfinished.exists() and not (unfinished / stamp).exists():
        shutil.rmtree(unfinished)
    keys = {part: list(read_table(path)) for part, path in scps.items()}
    # As many as there are processes, or more; ESPnet needs an utterance of each part in each of them.
    number = max(parallel["nj"], -(-len(keys["train"]) // _PIECE_SIZE))
    number = min(number, *map(len, keys.values()))
    if number == 0:
        raise UserError(f"{' or '.join(map(str, scps.values()))}: no utterances")
    pieces, directories = {}, []
    for i, parts in enumerate(zip(*(_split(keys[part], number) for part in PARTS), strict=True), 1):
        directory = unfinished / stamp / f"statistics.{i}of{number}"
        for part, piece in zip(PARTS, parts, strict=True):
            write_table(directory / f"keys.{part}", dict.fromkeys(piece, "-"))
        pieces[directory.name] = (arguments, str(directory))
        directories.append(directory)
    with progress(desc="statistics", total=number, unit="piece") as bar:
        options = {"prepare": import_asr_train, "advance": lambda _: bar.update(), **parallel}
        try:
            map_pieces(collect_piece, pieces, directory=unfinished / stamp, **options)
        except UserError:
            failed = [
                directory for directory in directories if directory.with_name(f"{directory.name}.failed").exists()
            ]
            _name_damaged_features(scps, failed)
            raise
    write_features(unfinished, read_features(scps["valid"].parent))
    _aggregate(directories, unfinished, len(token_list.read_text(encoding="utf-8").splitlines()), token_type)
    shutil.rmtree(unfinished / stamp)
    for name, content in ((DATA_DIGEST, data), (".stamp", stamp)):
        with atomic_open(unfinished / name) as stream:
            stream.write(content)
    shutil.rmtree(output_dir, ignore_errors=True)
    os.replace(unfinished, output_dir)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.training.statistics",
        usage="%(prog)s OPTION ... [ARGUMENT OF asr_train ...]",
        description=__doc__,
        allow_abbrev=False,  # what it does not know is asr_train's
    )
    parser.add_argument("--train_scp", type=Path, required=True, metavar="SCP", help="the training set's recordings")
    parser.add_argument("--valid_scp", type=Path, required=True, metavar="SCP", help="the validation set's recordings")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="where the statistics go")
    parser.add_argument("--token_list", type=Path, required=True, metavar="FILE", help="of stage 5")
    parser.add_argument("--token_type", required=True, metavar="TYPE", help="bpe or char")
    parser.add_argument("--asr_config", type=Path, metavar="YAML", help="training configuration")
    parser.add_argument("--nj", type=int, default=1, help="number of processes, or of Slurm's jobs (%(default)s)")
    parser.add_argument("--cmd", choices=["local", "slurm"], default="local", help="where they run (%(default)s)")
    parser.add_argument("--slurm_config", type=Path, metavar="YAML", help="settings of Slurm's jobs")
    parser.add_argument("--check", action="store_true", help="only check that they are there, of the data as it is now")
    args, arguments = parser.parse_known_args()
    scps = {"train": args.train_scp, "valid": args.valid_scp}
    if args.check:
        check_statistics(scps, args.token_list, args.output_dir)
        return
    made = collect_statistics(
        scps,
        args.token_list,
        args.token_type,
        args.asr_config,
        ["--token_type", args.token_type, "--token_list", str(args.token_list), *arguments],
        args.output_dir,
        nj=max(args.nj, 1),
        cmd=args.cmd,
        slurm_config=args.slurm_config,
    )
    if not made:
        print(f"{args.output_dir}: kept")


if __name__ == "__main__":
    command_line(main)
