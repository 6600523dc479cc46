"""`espnet-lmu export MODEL`: a trained model as ONNX or TorchScript files."""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lmu.errors import UserError

_EPILOG = """\
model.onnx takes features of whole recordings, streaming.onnx those of a chunk and a state. sherpa-onnx runs models
trained with --feats_type fbank: model.onnx as OfflineRecognizer.from_zipformer_ctc, sherpa_streaming.onnx as
OnlineRecognizer.from_zipformer2_ctc; give an online stream a chunk of silence after the recording, before
input_finished(), for it decodes no chunk without a frame after it. Of a model trained on audio with normalize:
utterance_mvn it runs sherpa.onnx, as OfflineRecognizer.from_omnilingual_asr_ctc.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="experiment folder, packed model, or USER/NAME on Hugging Face")
    parser.add_argument("--format", choices=["onnx", "torchscript"], default="onnx", help="kind of file (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--int8", action="store_true", help="also with 8-bit weights (ONNX)")
    parser.add_argument("--streaming", action="store_true", help="one chunk of a causal model, its state in and out")
    parser.add_argument(
        "--chunk", type=int, metavar="FRAMES", help="encoder frames of a chunk (default: as espnet-lmu stream)"
    )
    parser.add_argument(
        "--check", type=Path, metavar="DATA_DIR", help="decode this data (text, and feats.scp or wav.scp): WER, speed"
    )


def run(args: argparse.Namespace) -> None:
    if args.int8 and args.format != "onnx":
        raise UserError("--int8: needs --format onnx")
    if args.chunk is not None and not args.streaming:
        raise UserError("--chunk: needs --streaming")
    if args.chunk is not None and args.chunk < 1:
        raise UserError(f"--chunk {args.chunk}: give at least 1 frame")
    if args.check is not None and not (args.check / "text").is_file():
        raise UserError(f"--check {args.check}: no data directory: {args.check / 'text'} is missing")
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output}: a file; give a folder")

    from espnet_lmu.export.export import export_model

    export_model(args.model, args.output, args.format, args.int8, args.streaming, args.chunk, args.check)
