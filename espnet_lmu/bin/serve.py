"""`espnet-lmu serve MODEL`: a page with live captions of a microphone or a file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from espnet_lmu.errors import UserError


def _positive(kind: type):
    def convert(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = "positive number"
    return convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="experiment folder, packed model, or USER/NAME on Hugging Face")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (%(default)s: this machine only; 0.0.0.0: everybody who can reach it)",
    )
    parser.add_argument("--port", type=int, default=8080, help="0 for any that is free (%(default)s)")
    parser.add_argument(
        "--chunk",
        type=_positive(float),
        metavar="SECONDS",
        help="audio after which the text goes on (default: the model's shortest)",
    )
    parser.add_argument(
        "--max_clients", type=_positive(int), default=8, metavar="N", help="clients served at once (%(default)s)"
    )
    parser.add_argument(
        "--max_audio",
        type=_positive(float),
        default=600.0,
        metavar="SECONDS",
        help="longest recording of a client (%(default)g)",
    )
    parser.add_argument(
        "--max_time",
        type=_positive(float),
        default=900.0,
        metavar="SECONDS",
        help="longest time that a recording may take (%(default)g)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")


def run(args: argparse.Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve: needs pip install 'espnet_lmu[serve]' ({error})") from None

    from espnet_lmu.serve.server import address, allowed_hosts, is_loopback, open_socket, serve

    # Loading the model takes seconds: what is wrong with the port is said before.
    listening = open_socket(args.host, args.port)

    import torch

    from espnet_lmu.lmu.products import use_fast_products
    from espnet_lmu.recognition.model_files import open_model
    from espnet_lmu.serve.app import Limits, build_app
    from espnet_lmu.streaming.recognizer import StreamingRecognizer

    if args.device == "cpu":
        torch.set_num_threads(1)  # a chunk is too little work to share
    use_fast_products()
    files = open_model(args.model)
    try:
        recognizer = StreamingRecognizer(files.config_file, files.model_file, args.device, args.chunk, files.rate)
    except UserError as error:
        raise UserError(f"{args.model}: {error}") from None
    workers = len(os.sched_getaffinity(0)) if args.device == "cpu" else 1
    limits = Limits(args.max_clients, args.max_audio, args.max_time)
    name = Path(args.model).resolve().name
    app = build_app(recognizer, name, limits, allowed_hosts(args.host), workers)
    print(f"{address(listening, args.host)} (latency {recognizer.latency:.2f} s at most; Ctrl-C ends)", flush=True)
    if not is_loopback(args.host):
        # The far end of the tunnel: where this listens, as seen from here.
        here, port = "localhost" if args.host in ("0.0.0.0", "::") else args.host, listening.getsockname()[1]
        print(
            "note: browsers give the microphone to localhost and https only: from elsewhere, ssh -L "
            f"{port}:{here}:{port} or a proxy with https; audio files work anyway",
            file=sys.stderr,
        )
    serve(app, listening)
