"""`espnet-lmu score REF HYP`: WER and CER (and TER) of a file of hypotheses."""

from __future__ import annotations

import argparse
import os

from espnet_lmu.errors import UserError
from espnet_lmu.scoring.error_rate import (
    HEADER,
    read_texts,
    score,
    split_characters,
    split_tokens,
    split_words,
    write_result,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="reference text, lines of ID WORDS")
    parser.add_argument("hypothesis", metavar="HYP", help="recognized text with the same ids")
    parser.add_argument("--bpemodel", metavar="MODEL", help="sentencepiece model: also the token error rate (TER)")
    parser.add_argument("--alignment", metavar="FILE", help="write the word alignment of every utterance to FILE")


def _same_file(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def run(args: argparse.Namespace) -> None:
    if args.alignment and any(_same_file(args.alignment, path) for path in (args.reference, args.hypothesis)):
        raise UserError(f"--alignment {args.alignment}: would replace a file of texts; give another name")
    references, hypotheses = read_texts(args.reference, args.hypothesis)
    splits = {"WER": split_words, "CER": split_characters}
    if args.bpemodel:
        splits["TER"] = split_tokens(args.bpemodel)
    print(HEADER)
    for name, split in splits.items():
        total, alignments = score(references, hypotheses, split)
        print(total.row(name))
        if name == "WER" and args.alignment:
            write_result(args.alignment, name, total, alignments)
