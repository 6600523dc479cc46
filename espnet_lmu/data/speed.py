"""Stage 2: copies of a training set at other speeds (Ko et al., "Audio augmentation for speech recognition", 2015).

Only the tables are written: ``utt2speed`` says which factor stage 3 applies to the audio. Ids and speakers of
the copies start with ``sp0.9-``, as in Kaldi, so that a copy counts as another speaker.
"""

from __future__ import annotations

import argparse

from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import read_data_dir, write_data_dir
from espnet_lmu.errors import UserError


def parse_factors(text: str) -> list[float]:
    """Factors of ``"0.9 1.0 1.1"``: between 0.5 and 2, none twice."""
    try:
        factors = [float(factor) for factor in text.split()]
    except ValueError:
        factors = []
    names = {f"{factor:g}" for factor in factors}
    if not factors or len(names) != len(factors) or not all(0.5 <= factor <= 2 for factor in factors):
        raise UserError(f'--speed_perturb_factors "{text}": give different factors from 0.5 to 2, e.g. "0.9 1.0 1.1"')
    return factors


def perturb(tables: dict[str, dict[str, str]], factors: list[float], source: str) -> dict[str, dict[str, str]]:
    """Tables with every utterance once for each factor, and their ``utt2speed``.

    Raises:
        UserError: a copy would have the id of another utterance of the directory `source`.
    """
    perturbed: dict[str, dict[str, str]] = {"text": {}, "utt2spk": {}, "utt2speed": {}}
    audio = "segments" if "segments" in tables else "wav.scp"
    if audio == "segments":
        perturbed["wav.scp"] = tables["wav.scp"]
    perturbed[audio] = {}
    for factor in factors:
        prefix = "" if factor == 1 else f"sp{factor:g}-"
        for utterance in tables["text"]:
            if prefix + utterance in perturbed["text"]:
                raise UserError(
                    f"{source}: at speed {factor:g} the copy of {utterance} would have the id of another utterance; if "
                    'it has copies already, give --speed_perturb_factors "1.0"'
                )
            perturbed[audio][prefix + utterance] = tables[audio][utterance]
            perturbed["text"][prefix + utterance] = tables["text"][utterance]
            perturbed["utt2spk"][prefix + utterance] = prefix + tables["utt2spk"][utterance]
            perturbed["utt2speed"][prefix + utterance] = f"{factor:g}"
    return perturbed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.speed", description="Write a data directory with copies at several speeds."
    )
    parser.add_argument("--factors", required=True, help='speed factors, e.g. "0.9 1.0 1.1" (1.0 is the original)')
    parser.add_argument("source", metavar="DIR", help="data directory, e.g. data/train")
    parser.add_argument("target", metavar="OUTPUT", help="data directory to write, e.g. data/train_sp")
    args = parser.parse_args()
    perturbed = perturb(read_data_dir(args.source), parse_factors(args.factors), args.source)
    write_data_dir(args.target, perturbed)
    print(f"{args.target}: {len(perturbed['text'])} utterances")


if __name__ == "__main__":
    command_line(main)
