"""`espnet-lmu cost`: what training on LibriSpeech 960 takes, from the throughput of a GPU."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from espnet_lmu.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "configs", type=Path, nargs="*", metavar="CONFIG", help="training configurations (all published)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--bench", type=Path, metavar="FILE", help="what espnet-lmu bench --case training --json printed"
    )
    source.add_argument(
        "--throughput",
        type=float,
        action="append",
        metavar="X",
        help="seconds of audio that a GPU trains on in a second (RESULTS.md tells it); given again for each CONFIG",
    )
    parser.add_argument("--gpus", type=int, action="append", metavar="N", help="GPUs; may be given again (1 and 8)")
    parser.add_argument(
        "--speed_perturb_factors", default="0.9 1.0 1.1", metavar="FACTORS", help="as the recipe's (%(default)s)"
    )
    parser.add_argument("--vocab_size", type=int, default=29, help="tokens of the CTC layer, blank included (29)")


def run(args: argparse.Namespace) -> None:
    from espnet_lmu.data.speed import parse_factors
    from espnet_lmu.encoder.parameters import published_configurations
    from espnet_lmu.report.cost import Throughput, format_costs, read_bench

    factors = parse_factors(args.speed_perturb_factors)
    gpus = args.gpus or [1, 8]
    if min(gpus) < 1:
        raise UserError(f"--gpus {min(gpus)}: give at least 1")
    configs = args.configs or published_configurations()
    if not configs:
        raise UserError("give training configurations: this installation has not the published ones")
    if args.bench is not None:
        measured = read_bench(args.bench)
        missing = [config for config in configs if config.stem not in measured]
        if missing:
            raise UserError(f"{args.bench}: nothing measured for {missing[0]}; there is: {', '.join(measured)}")
        throughputs = [measured[config.stem] for config in configs]
    else:
        if len(args.throughput) != len(configs):
            names = ", ".join(config.stem for config in configs)
            raise UserError(f"--throughput: given {len(args.throughput)} times; give one for each of {names}")
        for speed in args.throughput:
            if not 0 < speed < math.inf:
                raise UserError(f"--throughput {speed:g}: give more than 0")
        throughputs = [Throughput(speed, "as given") for speed in args.throughput]
    print(format_costs(configs, throughputs, gpus, factors, args.vocab_size))
