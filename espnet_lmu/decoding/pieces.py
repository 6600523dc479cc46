"""A data directory decoded in pieces, by processes of this machine or as jobs of a cluster (`espnet_lmu.parallel`)."""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from espnet_lmu.data.files import parse_rate, shorten
from espnet_lmu.data.filter import read_durations
from espnet_lmu.data.kaldi_dir import check_same_ids, read_table
from espnet_lmu.decoding.greedy import GreedyDecoder
from espnet_lmu.decoding.results import Hypothesis
from espnet_lmu.errors import UserError
from espnet_lmu.parallel import map_pieces
from espnet_lmu.progress import progress

Batch = list[tuple[str, str]]  # ids and paths


@dataclass(frozen=True)
class ModelFiles:
    """A trained model: ``config.yaml`` of the experiment, weights, and the device that it is to run on."""

    config_file: Path
    model_file: Path
    device: str = "cpu"


@functools.lru_cache(maxsize=1)
def load_decoder(files: ModelFiles) -> GreedyDecoder:
    """The model of this process. Forks inherit that of the process that they come from."""
    from espnet_lmu.lmu.products import use_fast_products

    use_fast_products()
    return GreedyDecoder(files.config_file, files.model_file, files.device)


def read_inputs(data_dir: Path, train_config: dict) -> tuple[str, dict[str, str], dict[str, float]]:
    """What the model of a training configuration reads of a formatted data directory.

    Returns:
        ``wav.scp`` or ``feats.scp``; its table; the seconds of each utterance.
    """
    name = "wav.scp" if train_config.get("input_size") is None else "feats.scp"
    scp = read_table(data_dir / name)
    durations = read_durations(data_dir, parse_rate(str((train_config.get("frontend_conf") or {}).get("fs", "16k"))))
    check_same_ids(scp, data_dir / name, durations, f"{data_dir}: lengths")
    return name, scp, durations


def read_train_config(path: Path) -> dict:
    """The settings in an experiment's ``config.yaml``."""
    import yaml

    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not the configuration of a training")
    return settings


def pieces_folder(output_dir: Path, files: list[Path], *depends: object) -> Path:
    """Where below `output_dir` pieces wait for the others; the folders of pieces that depend on others are removed.

    Args:
        files: that the pieces are computed from.
        depends: what else they depend on, with a `repr` that says all of it.
    """
    states = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    folder = output_dir / "pieces" / hashlib.sha256(repr((states, depends)).encode()).hexdigest()[:16]
    for other in (output_dir / "pieces").glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _decode_piece(decode: Callable, files: ModelFiles, batches: list[Batch]) -> list[dict[str, Hypothesis]]:
    return decode(load_decoder(files), batches)


def _nothing() -> None:
    pass


def decode_set(
    decode: Callable[[GreedyDecoder, list[Batch]], list[dict[str, Hypothesis]]],
    data_dir: Path,
    files: ModelFiles,
    output_dir: Path,
    *,
    batch_size: int,
    nj: int,
    cmd: str = "local",
    slurm_config: Path | None = None,
) -> list[dict[str, Hypothesis]]:
    """Decode a formatted data directory; prints the real-time factor (processing time / audio duration).

    Args:
        decode: from batches of (id, path) to hypotheses of their utterances, once for each of its settings. It goes
            to the processes by pickling.
        output_dir: below it unfinished pieces stay after a kill, for the next call.
        batch_size: utterances in a batch.
        nj, cmd, slurm_config: of `map_pieces`.

    Returns:
        for each setting the hypotheses of all utterances.
    """
    _, scp, durations = read_inputs(data_dir, read_train_config(files.config_file))
    # Longest first: what does not fit into memory fails at once, and the short batches even out the end.
    order = sorted(scp, key=lambda key: (-durations[key], key))
    batches = [[(key, scp[key]) for key in order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    # More than processes, so that they end together; but each process on a GPU, and each job, loads the model.
    number = min(len(batches), nj if files.device != "cpu" or cmd != "local" else 8 * nj)
    groups = [batches[i::number] for i in range(number)]
    pieces_dir = pieces_folder(output_dir, [files.model_file], decode, files, groups)

    # CUDA does not survive a fork: there each process loads the model.
    prepare = functools.partial(load_decoder, files) if files.device == "cpu" else _nothing
    if cmd == "local":
        prepare()  # before the clock starts
    start = time.perf_counter()
    pieces = {f"{i:05d}": (decode, files, group) for i, group in enumerate(groups)}
    sizes = {f"{i:05d}": sum(map(len, group)) for i, group in enumerate(groups)}
    with progress(desc=f"decode {data_dir.name}", total=len(scp), unit="utt") as bar:
        results = map_pieces(
            _decode_piece,
            pieces,
            directory=pieces_dir,
            nj=nj,
            cmd=cmd,
            slurm_config=slurm_config,
            prepare=prepare,
            advance=lambda name: bar.update(sizes[name]),
        )
    merged: list[dict[str, Hypothesis]] = [
        {key: hypothesis for part in parts for key, hypothesis in part.items()}
        for parts in zip(*results.values(), strict=True)
    ]
    elapsed = time.perf_counter() - start
    shutil.rmtree(output_dir / "pieces")
    seconds = sum(durations.values())
    # A score is there whenever the model ran.
    short = sorted(key for key, hypothesis in merged[0].items() if not hypothesis.score)
    if short:
        print(f"{data_dir.name}: {len(short)} utterances are too short for the model, no words: {shorten(short)}")
    print(
        f"{data_dir.name}: {len(scp)} utterances, {seconds:.1f} s of audio in {elapsed:.1f} s ({nj} processes), "
        f"real-time factor {elapsed / max(seconds, 1e-9):.4f}"
    )
    return merged
