"""`espnet-lmu transcribe MODEL AUDIO...`: recordings to text, with the times of words."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from espnet_lmu.errors import UserError
from espnet_lmu.recognition.formats import SUFFIXES, render
from espnet_lmu.recognition.recordings import find_recordings, output_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="experiment folder, packed model, or USER/NAME on Hugging Face")
    parser.add_argument(
        "audio", metavar="AUDIO", nargs="+", help="audio files of any rate, length and channel count, folders, wav.scp"
    )
    parser.add_argument(
        "--format", choices=SUFFIXES, default="text", help="text, or with times: json, srt, vtt, ctm (%(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a file for each recording, in place of printing")
    parser.add_argument("--nj", type=int, metavar="N", help="number of processes (default: one for each core)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.nj is not None and args.nj < 1:
        raise UserError(f"--nj {args.nj}: give at least 1")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output}: a file; give a folder")
    recordings = find_recordings(args.audio)
    if args.output is None and args.format in ("srt", "vtt") and len(recordings) > 1:
        raise UserError(f"--format {args.format}: subtitles of {len(recordings)} recordings need --output DIR")
    files = output_files(list(recordings), args.output, SUFFIXES[args.format]) if args.output else {}

    import torch

    from espnet_lmu.data.files import atomic_open
    from espnet_lmu.lmu.products import use_fast_products
    from espnet_lmu.progress import progress
    from espnet_lmu.recognition.recognizer import load_model

    on_cpu = args.device == "cpu"
    nj = (args.nj or len(os.sched_getaffinity(0))) if on_cpu else 1  # a GPU serves one process
    if on_cpu:
        torch.set_num_threads(1)
    use_fast_products()
    recognizer = load_model(args.model, args.device)
    failed = 0
    results = recognizer.transcribe_all(list(recordings.values()), nj)
    # A bar only where somebody looks, and not between lines of text.
    hidden = not sys.stderr.isatty() or (args.output is None and sys.stdout.isatty())
    shown = progress(results, total=len(recordings), unit="file", disable=hidden)
    for name, result in zip(recordings, shown, strict=True):
        if isinstance(result, UserError):
            print(f"error: {result}", file=sys.stderr)
            failed += 1
        elif args.output:
            with atomic_open(files[name]) as stream:
                stream.write(render(name, result, args.format))
        elif args.format == "text":
            print(f"{name} {result.text}".rstrip(), flush=True)
        else:
            print(render(name, result, args.format), end="", flush=True)
    if failed:
        raise UserError(f"{failed} of {len(recordings)} recordings could not be transcribed")
    return 0
