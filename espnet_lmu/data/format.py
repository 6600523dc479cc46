"""Stage 3: audio in one format and rate (``raw``: FLAC) or log-mel filterbanks (``fbank``: kaldiio archives).

Utterances are processed in shards of 64 by several processes or jobs. A finished shard leaves a JSON file with a
stamp of its sources and options; a second run keeps the shards whose stamp still holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet_lmu.data.audio import audio_length, resample
from espnet_lmu.data.features import write_features
from espnet_lmu.data.files import atomic_open, command_line, parse_rate, shorten
from espnet_lmu.data.kaldi_dir import excerpts, read_data_dir, write_data_dir, write_table
from espnet_lmu.data.segments import Excerpt, read_excerpt
from espnet_lmu.errors import UserError
from espnet_lmu.parallel import map_pieces
from espnet_lmu.progress import progress

MEL_BINS = 80
FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
_FBANK_OPTIONS = {
    "num_mel_bins": MEL_BINS,
    "frame_length": FRAME_LENGTH_MS,
    "frame_shift": FRAME_SHIFT_MS,
    "high_freq": -400.0,  # Hz below the highest that there is
    "dither": 0.0,
}
_SHARD_SIZE = 64


class _Item(NamedTuple):
    utterance: str
    audio: Excerpt
    speed: float


def feature_settings(rate: int) -> dict:
    """The record of `fbank` (`espnet_lmu.data.features`)."""
    return {"features": "fbank", "rate": rate, "amplitude": 1.0, **_FBANK_OPTIONS, "snip_edges": False}


def frame_geometry(rate: int) -> tuple[int, int, int, int]:
    """Samples of a frame of `fbank`, of its shift, and of the mirrored borders before and after a recording."""
    window, shift = rate * FRAME_LENGTH_MS // 1000, rate * FRAME_SHIFT_MS // 1000
    before = window // 2 - shift // 2
    return window, shift, before, window - before - shift + shift // 2


def frame_count(length: int, rate: int) -> int:
    """Rows of `fbank` for `length` samples."""
    _, shift, _, _ = frame_geometry(rate)
    return (length + shift // 2) // shift


def fbank(samples: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel filterbank as Kaldi computes it with ``--snip-edges=false --dither=0 --high-freq=-400``.

    These are the features of icefall, lhotse and sherpa-onnx, which recognizes with models trained on them.

    Args:
        samples: (frames,) float32 in [-1, 1].
        rate: sampling rate in Hz.

    Returns:
        (T, 80) float32; row k is about the 25 ms around 10 k + 5 ms, with the recording mirrored at its ends.
    """
    if not frame_count(len(samples), rate):
        return np.empty((0, MEL_BINS), dtype=np.float32)
    _, _, before, after = frame_geometry(rate)
    return fbank_inside(np.pad(samples, (before, after), mode="symmetric"), rate)


def fbank_inside(samples: np.ndarray, rate: int) -> np.ndarray:
    """The rows of `fbank` whose frames lie within `samples`; at least one frame, of `frame_geometry`."""
    import torch
    import torchaudio

    return torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(samples)[None], sample_frequency=rate, snip_edges=True, **_FBANK_OPTIONS
    ).numpy()


_Audio = Iterable[tuple[str, np.ndarray]]  # utterances with their samples
_Entries = dict[str, tuple[str, int]]  # utterances with where they are and their length, in samples or frames


def _write_raw(temporary: Path, final: Path, audio: _Audio, rate: int) -> _Entries:
    import soundfile

    temporary.mkdir(parents=True)
    entries = {}
    for utterance, samples in audio:
        name = utterance.replace("%", "%25").replace("/", "%2F") + ".flac"  # another one for each id
        soundfile.write(temporary / name, np.clip(samples, -1, 1), rate, subtype="PCM_16")
        entries[utterance] = (str(final / name), len(samples))
    return entries


def _write_fbank(temporary: Path, final: Path, audio: _Audio, rate: int) -> _Entries:
    import kaldiio

    temporary.parent.mkdir(parents=True, exist_ok=True)
    index = Path(f"{temporary}.scp")
    lengths = {}
    with kaldiio.WriteHelper(f"ark,scp:{temporary},{index}", compression_method=2) as writer:
        for utterance, samples in audio:
            features = fbank(samples, rate)
            writer(utterance, features)
            lengths[utterance] = len(features)
    entries = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        utterance, location = line.split(maxsplit=1)
        entries[utterance] = (f"{final}:{location.rsplit(':', 1)[1]}", lengths[utterance])
    index.unlink()
    return entries


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _stamp(items: list[_Item], options: dict) -> str:
    sources = []
    for key, audio, speed in items:
        status = os.stat(audio.path)
        part = () if audio.end is None else (audio.start, audio.end)
        sources.append((key, audio.path, speed, status.st_size, status.st_mtime_ns, *part))
    return hashlib.sha256(json.dumps([sources, options]).encode()).hexdigest()


def _finished(shard: Path, stamp: str) -> dict | None:
    """The record of a finished shard, or None if it has to be made (again)."""
    try:
        record = json.loads(shard.with_suffix(shard.suffix + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record["stamp"] != stamp or "bytes" not in record:
        return None
    try:
        whole = all(os.path.getsize(path) == size for path, size in record["bytes"].items())
    except OSError:
        return None
    return record if whole else None


def _process_shard(shard: Path, items: list[_Item], options: dict, stamp: str) -> dict:
    """Write a shard and its record; unreadable recordings are listed under ``errors`` instead of stopping it."""
    record: dict = {"stamp": stamp, "entries": {}, "resampled": 0, "errors": []}
    fs = options["fs"]

    def audio() -> _Audio:
        for utterance, excerpt, speed in items:
            try:
                samples, rate = read_excerpt(excerpt)
            except UserError as error:
                record["errors"].append(f"{utterance}: {error}")
                continue
            record["resampled"] += rate != fs
            samples = resample(samples, rate, fs, speed)
            if options["feats_type"] == "fbank" and not frame_count(len(samples), fs):
                record["errors"].append(f"{utterance}: {len(samples)} samples are too few for a frame of features")
                continue
            yield utterance, samples

    write, suffix = (_write_raw, "") if options["feats_type"] == "raw" else (_write_fbank, ".ark")
    final = shard.with_suffix(shard.suffix + suffix)
    # Under a temporary name until it is complete; what refers to it has the final one.
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    entries = write(temporary, final, audio(), fs)
    if record["errors"]:
        _remove(temporary)
        return record
    record["entries"] = entries
    written = temporary.iterdir() if temporary.is_dir() else [temporary]
    record["bytes"] = {str(final / path.relative_to(temporary)): path.stat().st_size for path in written}
    _remove(final)
    os.replace(temporary, final)
    with atomic_open(shard.with_suffix(shard.suffix + ".json")) as stream:
        json.dump(record, stream)
    return record


def _any_to_resample(items: list[_Item], fs: int) -> bool:
    for item in items:
        try:
            if audio_length(item.audio.path)[1] != fs:
                return True
        except UserError:  # comes up again where the audio is read
            pass
    return False


def format_data_dir(source: Path, target: Path, feats_type: str, fs: int, **parallel) -> None:
    """Write data directory `target` with the audio of `source` as FLAC or filterbanks at `fs` Hz.

    Args:
        parallel: `nj` and what else `map_pieces` needs to know of processes and jobs.

    Raises:
        UserError: recordings that cannot be read; the shards without such recordings stay.
    """
    tables = read_data_dir(source)
    speeds = tables.pop("utt2speed", {})
    items = [_Item(key, audio, float(speeds.get(key, 1))) for key, audio in excerpts(tables).items()]
    table = "segments" if tables.pop("segments", None) else "wav.scp"
    options = {"feats_type": feats_type, "fs": fs}
    if feats_type == "fbank":
        options["fbank"] = _FBANK_OPTIONS
    shards = {
        target / "data" / f"format.{start // _SHARD_SIZE + 1}": items[start : start + _SHARD_SIZE]
        for start in range(0, len(items), _SHARD_SIZE)
    }
    records, missing = [], {}
    for shard, members in shards.items():
        stamp = _stamp(members, options)
        record = _finished(shard, stamp)
        if record is None:
            missing[shard.name] = (shard, members, options, stamp)
        else:
            records.append(record)
    firsts = [members[0] for _, members, _, _ in missing.values()]
    # Imports are spent once here and not in every process; torchaudio takes seconds.
    if missing:
        import soundfile  # noqa: F401
    if missing and feats_type == "fbank":
        import kaldiio  # noqa: F401
    if missing and (feats_type == "fbank" or any(item.speed != 1 for item in items) or _any_to_resample(firsts, fs)):
        import torchaudio  # noqa: F401

    done = sum(len(record["entries"]) for record in records)
    bar = progress(desc=str(target), total=len(items), initial=done, unit="utt")
    pieces = target / "data" / "pieces"
    for left_by_a_kill in (pieces, *(target / "data").glob(".*.tmp*")):
        _remove(left_by_a_kill)
    if missing:
        write_features(target, None)  # until all are of one kind
    with bar:
        made = map_pieces(
            _process_shard,
            missing,
            directory=pieces,
            advance=lambda name: bar.update(len(missing[name][1])),
            **parallel,
        )
    shutil.rmtree(pieces)
    records += made.values()

    errors = sorted(error for record in records for error in record["errors"])
    if errors:
        raise UserError(
            f"{source}/{table}: {len(errors)} utterances cannot be used; replace or remove them: {shorten(errors)}"
        )
    resampled = sum(record["resampled"] for record in records)
    if resampled:
        print(f"{source}: {resampled} of {len(items)} utterances had another sampling rate, brought to {fs} Hz")

    entries = {key: entry for record in records for key, entry in record["entries"].items()}
    paths = {key: path for key, (path, _) in entries.items()}
    if feats_type == "raw":
        tables["wav.scp"] = paths
        tables["utt2num_samples"] = {key: str(length) for key, (_, length) in entries.items()}
    else:
        del tables["wav.scp"]
        tables["feats.scp"] = paths
        tables["feats_shape"] = {key: f"{length},{MEL_BINS}" for key, (_, length) in entries.items()}
        write_table(target / "feats_dim", {str(MEL_BINS): ""})
        write_features(target, feature_settings(fs))
    tables["text"] = {key: " ".join(text.split()) for key, text in tables["text"].items()}
    write_data_dir(target, tables)
    write_table(target / "feats_type", {feats_type: ""})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.format",
        description="Copy a data directory with its audio as FLAC or as log-mel filterbanks, at one sampling rate.",
    )
    parser.add_argument("--feats_type", choices=["raw", "fbank"], default="raw", help="what to write (%(default)s)")
    parser.add_argument("--fs", default="16k", help="sampling rate, e.g. 16k (%(default)s)")
    parser.add_argument("--nj", type=int, default=1, help="number of processes, or of Slurm's jobs (%(default)s)")
    parser.add_argument("--cmd", choices=["local", "slurm"], default="local", help="where they run (%(default)s)")
    parser.add_argument("--slurm_config", type=Path, metavar="YAML", help="settings of Slurm's jobs")
    parser.add_argument("source", metavar="DIR", help="data directory, e.g. data/train")
    parser.add_argument("target", metavar="OUTPUT", help="data directory to write, e.g. dump/raw/org/train")
    args = parser.parse_args()
    parallel = {"nj": max(args.nj, 1), "cmd": args.cmd, "slurm_config": args.slurm_config}
    format_data_dir(Path(args.source), Path(args.target), args.feats_type, parse_rate(args.fs), **parallel)


if __name__ == "__main__":
    command_line(main)
