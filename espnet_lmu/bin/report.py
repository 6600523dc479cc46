"""`espnet-lmu report EXPDIR`: the page and the RESULTS.md of an experiment, made anew from what stage 13 left."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", type=Path, metavar="EXPDIR", help="experiment directory, exp/asr_...")
    parser.add_argument(
        "--decoding", metavar="NAME", help="its decoding directory to show in detail (the latest scored)"
    )
    parser.add_argument(
        "--data_feats", type=Path, metavar="DIR", help="formatted data, for speakers and audio (as the training had it)"
    )


def run(args: argparse.Namespace) -> None:
    from espnet_lmu.report.experiment import Experiment
    from espnet_lmu.report.page import write_report
    from espnet_lmu.report.results import write_results

    experiment = Experiment(args.experiment, args.data_feats)
    decoding = experiment.decoding(args.decoding)
    write_results(experiment, decoding)
    print(f"Open {write_report(experiment, decoding)} in a browser; the same figures in {args.experiment}/RESULTS.md")
