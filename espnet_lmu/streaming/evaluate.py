"""WER against latency: data directories recognized as streams, with several chunk sizes, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from espnet_lmu.data.audio import resample
from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import excerpts, read_data_dir
from espnet_lmu.data.segments import read_excerpt
from espnet_lmu.progress import progress
from espnet_lmu.recognition.model_files import open_model
from espnet_lmu.scoring.error_rate import ErrorRate, score, split_words

_BLOCK = 0.1  # seconds that a recognizer is given at once
_WHOLE = float("inf")

_HEADER = """\
| set | chunk, ms | latency at most, ms | WER, % | errors / words | real-time factor | computation a chunk, ms | 99 % |
|---|---|---|---|---|---|---|---|"""


def _chunk(text: str) -> float:
    """Seconds of a chunk; infinite for the word whole."""
    try:
        seconds = _WHOLE if text == "whole" else float(text)
        if not seconds > 0:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give seconds, or the word whole") from None
    return seconds


def _row(name: str, recognizer, whole: bool, total: ErrorRate, timing) -> str:
    milliseconds = 1000 * np.array(timing.chunks or [0.0])
    chunk, latency = f"{1000 * recognizer.chunk_seconds:.0f}", f"{1000 * recognizer.latency:.0f}"
    if whole:
        chunk, latency = "whole", "the recording"
    return (
        f"| {name} | {chunk} | {latency} | {total.rate:.2f} | {total.errors} / {total.units} | "
        f"{timing.real_time_factor:.4f} | {milliseconds.mean():.1f} | {np.quantile(milliseconds, 0.99):.1f} |"
    )


def evaluate(model: str, data_dirs: list[str], chunks: list[float], device: str = "cpu") -> Iterator[str]:
    """Recognize data directories as streams.

    Args:
        model: see `open_model`.
        data_dirs: with ``wav.scp``, ``text`` and ``utt2spk``.
        chunks: chunk sizes in seconds; infinity for the whole recording as one.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        the lines of a table.
    """
    from espnet_lmu.streaming.recognizer import StreamingRecognizer
    from espnet_lmu.streaming.session import Timing, recognize

    sets = {data_dir: read_data_dir(data_dir) for data_dir in data_dirs}
    files = open_model(model)
    first = StreamingRecognizer(files.config_file, files.model_file, device, chunks[0], files.rate)
    yield _HEADER
    for data_dir, tables in sets.items():
        for chunk in chunks:
            recognizer = first.another(chunk)
            timing, texts = Timing(), {}
            for key, excerpt in progress(excerpts(tables).items(), unit="utt", leave=False):
                samples = resample(*read_excerpt(excerpt), recognizer.fs)
                size = round(_BLOCK * recognizer.fs)
                blocks = (samples[begin : begin + size] for begin in range(0, len(samples), size))
                recognizer.reset()
                texts[key] = recognize(recognizer, blocks, timing).text
            total, _ = score({key: tables["text"][key] for key in texts}, texts, split_words)
            whole = chunk == _WHOLE and recognizer.chunk > 1  # without attention chunks are frames
            yield _row(Path(data_dir).name, recognizer, whole, total, timing)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.streaming.evaluate",
        description="Recognize data directories as streams: word error rate against latency. Start it where the paths "
        "in wav.scp start.",
    )
    parser.add_argument("model", metavar="MODEL", help="experiment folder, packed model, or USER/NAME on Hugging Face")
    parser.add_argument("data", metavar="DIR", nargs="+", help="data directory, e.g. data/test")
    parser.add_argument(
        "--chunk",
        type=_chunk,
        nargs="+",
        default=[1.28, 0.64, 0.32],
        metavar="SECONDS",
        help="chunk sizes; the word whole for recordings as one chunk (default: 1.28 0.64 0.32)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    args = parser.parse_intermixed_args()

    import torch

    from espnet_lmu.lmu.products import use_fast_products

    if args.device == "cpu":
        torch.set_num_threads(1)  # a chunk is too little work to share
    use_fast_products()
    for line in evaluate(args.model, args.data, args.chunk, args.device):
        print(line, flush=True)


if __name__ == "__main__":
    command_line(main)
