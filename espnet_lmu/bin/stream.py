"""`espnet-lmu stream MODEL AUDIO`: text while audio is spoken, with the latency."""

from __future__ import annotations

import argparse
import sys

from espnet_lmu.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="experiment folder, packed model, or USER/NAME on Hugging Face")
    parser.add_argument(
        "audio",
        metavar="AUDIO",
        help="an audio file, which is read at the pace of its recording; - for raw 16-bit samples (little-endian, "
        "mono, at the model's rate) on standard input; or the word microphone",
    )
    parser.add_argument(
        "--chunk",
        type=float,
        metavar="SECONDS",
        help="audio after which the text goes on (default: the model's shortest)",
    )
    parser.add_argument("--fast", action="store_true", help="read a file as fast as possible")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from espnet_lmu.data.audio import audio_length
    from espnet_lmu.streaming.audio import file_blocks, import_sounddevice, microphone_blocks, pcm_blocks

    # Loading the model takes seconds: what is wrong with the audio is said before.
    if args.audio == "microphone":
        import_sounddevice()
    elif args.audio != "-":
        audio_length(args.audio)
    elif sys.stdin is None or sys.stdin.isatty():
        raise UserError("-: standard input is closed, or a terminal; pipe raw 16-bit samples into this command")

    import torch

    from espnet_lmu.lmu.products import use_fast_products
    from espnet_lmu.recognition.model_files import open_model
    from espnet_lmu.streaming.recognizer import StreamingRecognizer
    from espnet_lmu.streaming.session import PlainText, TerminalText, Timing, recognize, summary

    if args.device == "cpu":
        torch.set_num_threads(1)  # a chunk is too little work to share
    use_fast_products()
    files = open_model(args.model)
    recognizer = StreamingRecognizer(files.config_file, files.model_file, args.device, args.chunk, files.rate)
    if args.audio == "microphone":
        blocks = microphone_blocks(recognizer.fs)
    elif args.audio == "-":
        blocks = pcm_blocks(sys.stdin.buffer, recognizer.fs)
    else:
        blocks = file_blocks(args.audio, recognizer.fs, args.fast)
    show = (TerminalText if sys.stdout.isatty() else PlainText)(sys.stdout)
    timing = Timing()
    recognize(recognizer, blocks, timing, show, interruptible=True)
    show.close()
    print(summary(recognizer, timing), file=sys.stderr)
