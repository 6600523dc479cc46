"""`espnet-lmu params CONFIG`: how many parameters a configuration has, part by part, and what training it takes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="ESPnet training configuration (YAML) with `encoder: lmu`")
    parser.add_argument("--vocab_size", type=int, default=29, help="tokens of the CTC layer, blank included (29)")
    parser.add_argument("--batch_size", type=int, metavar="B", help="utterances of a batch: also the memory it needs")
    parser.add_argument("--frames", type=int, default=1600, metavar="T", help="their frames of 10 ms (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    from espnet_lmu.encoder.activations import batch_memory
    from espnet_lmu.encoder.parameters import count_parameters, format_table

    report = count_parameters(args.config, args.vocab_size)
    if args.batch_size is not None:
        report["batch"] = batch_memory(args.config, args.vocab_size, args.batch_size, args.frames, report)
    print(json.dumps(report, indent=2) if args.json else format_table(report))
