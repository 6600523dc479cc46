"""Stage 4: leave utterances out of training that are too short, too long or have no transcript.

Test sets keep everything; ``--report`` only names their utterances that are too short to be decoded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lmu.data.features import read_features, write_features
from espnet_lmu.data.files import command_line, parse_rate, shorten
from espnet_lmu.data.format import FRAME_SHIFT_MS
from espnet_lmu.data.kaldi_dir import read_table, write_data_dir, write_table
from espnet_lmu.errors import UserError


def read_durations(directory: Path, fs: int) -> dict[str, float]:
    """Seconds of each utterance of a formatted data directory (raw or fbank) at `fs` Hz."""
    if (directory / "feats_shape").exists():
        shapes = read_table(directory / "feats_shape")
        return {key: int(shape.split(",")[0]) * FRAME_SHIFT_MS / 1000 for key, shape in shapes.items()}
    return {key: int(samples) / fs for key, samples in read_table(directory / "utt2num_samples").items()}


def filter_data_dir(source: Path, target: Path, fs: int, minimum: float, maximum: float) -> None:
    """Copy `source` to `target` without utterances outside (minimum, maximum) seconds or with empty text."""
    durations = read_durations(source, fs)
    texts = read_table(source / "text")
    reasons = {
        f"not longer than {minimum:g} s": [key for key in durations if durations[key] <= minimum],
        f"not shorter than {maximum:g} s": [key for key in durations if durations[key] >= maximum],
        "without a transcript": [key for key in texts if not texts[key]],
    }
    for reason, keys in reasons.items():
        if keys:
            print(f"{target}: left out {len(keys)} utterances {reason}: {shorten(keys)}")
    dropped = {key for keys in reasons.values() for key in keys}
    kept = [key for key in texts if key not in dropped]
    if not kept:
        raise UserError(f"{source}: no utterance is left; check --min_wav_duration, --max_wav_duration and the texts")

    feats_type = next(iter(read_table(source / "feats_type")))
    names = ["text", "utt2spk"]
    names += ["wav.scp", "utt2num_samples"] if feats_type == "raw" else ["feats.scp", "feats_shape"]
    tables = {name: read_table(source / name) for name in names}
    write_data_dir(target, {name: {key: table[key] for key in kept} for name, table in tables.items()})
    if feats_type != "raw":
        write_table(target / "feats_dim", read_table(source / "feats_dim"))
        write_features(target, read_features(source))
    write_table(target / "feats_type", {feats_type: ""})
    print(f"{target}: {len(kept)} of {len(texts)} utterances, {sum(durations[key] for key in kept) / 3600:.2f} h")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.filter",
        description="Copy a formatted data directory without utterances that are too short, too long or untranscribed.",
    )
    parser.add_argument("--fs", default="16k", help="sampling rate of raw audio (%(default)s)")
    parser.add_argument("--min_wav_duration", type=float, default=0.1, help="seconds (%(default)s)")
    parser.add_argument("--max_wav_duration", type=float, default=20.0, help="seconds (%(default)s)")
    parser.add_argument("--report", action="store_true", help="only name utterances that are too short to decode")
    parser.add_argument("source", metavar="DIR", help="data directory, e.g. dump/raw/org/train")
    parser.add_argument("target", metavar="OUTPUT", nargs="?", help="data directory to write, e.g. dump/raw/train")
    args = parser.parse_args()
    source, fs = Path(args.source), parse_rate(args.fs)
    if args.report:
        short = [key for key, seconds in read_durations(source, fs).items() if seconds <= args.min_wav_duration]
        if short:
            print(f"{source}: {len(short)} utterances may be too short to decode and get no words: {shorten(short)}")
        return
    if args.target is None:
        parser.error("OUTPUT is required without --report")
    filter_data_dir(source, Path(args.target), fs, args.min_wav_duration, args.max_wav_duration)


if __name__ == "__main__":
    command_line(main)
