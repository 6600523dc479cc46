"""`espnet-lmu bench`: the LMU and its encoder against LSTM, Conformer and others, side by side in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from espnet_lmu.errors import UserError

CASES = ("layers", "busy", "encoders", "attention", "checkpointing", "training", "length", "decoding", "command_line")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (%(default)s)")
    parser.add_argument("--case", action="append", choices=CASES, help="only this comparison; may be given again (all)")
    parser.add_argument("--quick", action="store_true", help="small inputs and few rounds: about a minute")
    parser.add_argument("--asr_model_file", type=Path, metavar="PTH", help="case decoding: a trained model, in EXPDIR")
    parser.add_argument("--data", type=Path, metavar="DIR", help="case decoding: formatted data, dump/FEATS/SET")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> None:
    import torch

    from espnet_lmu.bench import cases, floor, report
    from espnet_lmu.lmu.products import use_fast_products

    if (args.asr_model_file is None) != (args.data is None):
        raise UserError("decoding needs both --asr_model_file and --data")
    if args.case == ["decoding"] and args.data is None:
        raise UserError("--case decoding: give a trained model and data, --asr_model_file PTH --data DIR")
    for path in filter(None, (args.asr_model_file, args.data)):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}: give at least 1")
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: not to be had here ({str(error).splitlines()[0]})") from None
    torch.set_num_threads(args.threads)
    use_fast_products()  # for all that is compared, as in training and decoding
    seconds = 4.0 if args.quick else 60.0
    settings = cases.Settings(device, args.quick, seconds, args.asr_model_file, args.data)
    types = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    speeds = {dtype: floor.measure_speed(device, dtype) for dtype in types}
    names = [str(dtype).removeprefix("torch.") for dtype in types]
    gflops = [speed.operations / 1e9 for speed in speeds.values()]
    gbytes = speeds[torch.float32].bytes / 1e9
    machine = {**report.machine(device), "gflops": dict(zip(names, gflops, strict=True)), "gbytes": gbytes}
    if not args.json:
        print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}; ", end="")
        products = ", ".join(f"{value:.0f} GFLOP/s ({name})" for name, value in machine["gflops"].items())
        print(f"matrix products run at {products}, memory at {gbytes:.0f} GB/s, which sets the floors\n", flush=True)
    results = []
    for comparison in cases.run_cases(args.case or list(CASES), settings):
        results.append(report.as_dictionary(comparison, speeds[comparison.dtype]))
        if not args.json:
            print(report.as_text(results[-1]), flush=True)
    if args.json:
        print(json.dumps({"machine": machine, "comparisons": results}, indent=2))
