"""Stage 12: decode test sets: greedy CTC, prefix beam search with an n-gram, or ESPnet's search with a neural LM."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from pathlib import Path

from espnet_lmu.data.features import check_features, read_features
from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.decoding.results import Hypothesis, write_hypotheses
from espnet_lmu.decoding.settings import NGRAM_UNITS, read_settings
from espnet_lmu.errors import UserError
from espnet_lmu.lm.ngram import LEXICON

# decode(name of a set) -> its hypotheses
Decode = Callable[[str], dict[str, Hypothesis]]


def _beam_decoder(settings: dict, args: argparse.Namespace, decode_set: Callable) -> Decode:
    """Prefix beam search with the weights of the settings, or with the best of several on the validation set."""
    from espnet_lmu.decoding.ctc_beam import BeamDecoding, BeamOptions, import_decoder
    from espnet_lmu.decoding.tuning import Tuning, write_tuning
    from espnet_lmu.scoring.error_rate import score, split_words

    import_decoder()
    options = BeamOptions(**{name: settings[name] for name in ("beam_size", "beam_size_token", "beam_threshold")})
    lm = lexicon = None
    if unit := settings["ngram"]:
        lm = getattr(args, f"{unit}_ngram")
        if lm is None or not lm.exists():
            raise UserError(
                f"{lm or unit}: no such n-gram; run stage 9 with --use_ngram true --ngram_unit {unit} first"
            )
        lexicon = lm.with_suffix(LEXICON) if unit == "word" else None
    grid = tuple(settings["lm_weight"]), tuple(settings["insertion_score"])
    if max(map(len, grid)) > 1:
        references = read_table(args.data_feats / args.valid_set / "text")
        output_dir = args.decode_dir / "tuning"
        results = decode_set(
            BeamDecoding(options, lm, lexicon, *grid), args.data_feats / args.valid_set, output_dir=output_dir
        )
        texts = [{key: hypothesis.text for key, hypothesis in hypotheses.items()} for hypotheses in results]
        rates = [score(references, text, split_words)[0].rate for text in texts]
        tuning = Tuning.of(settings["lm_weight"], settings["insertion_score"], rates)
        write_tuning(output_dir, args.valid_set, tuning)
        weight, insertion_score = tuning.best
        grid = (weight,), (insertion_score,)
        print(
            f"{args.valid_set}: WER {min(rates):.2f} % with lm_weight {weight:g}, insertion_score "
            f"{insertion_score:g}, the best of {len(rates)} pairs; table and curves: {output_dir}/tuning.{{md,png}}"
        )
        for name in tuning.at_the_end():
            print(f"{name}: the best value is the last of those tried; {args.inference_config} may give others beyond")
    return lambda name: decode_set(
        BeamDecoding(options, lm, lexicon, *grid), args.data_feats / name, output_dir=args.decode_dir / name
    )[0]


def _espnet_decoder(args: argparse.Namespace, nj: int) -> Decode:
    from espnet_lmu.decoding.search import decode_beam

    arguments = args.inference_args
    if args.lm_file:
        for path in (args.lm_train_config, args.lm_file):
            if not path.exists():
                raise UserError(f"{path}: no such file; run stage 7 first (--use_lm true)")
        files = shlex.join(["--lm_train_config", str(args.lm_train_config), "--lm_file", str(args.lm_file)])
        arguments = f"{files} {arguments}"
    return lambda name: decode_beam(
        args.data_feats / name,
        args.asr_train_config,
        args.asr_model_file,
        args.decode_dir / name,
        args.inference_config,
        arguments,
        min(args.ngpu, 1),
        nj=nj,
        cmd=args.cmd,
        slurm_config=args.slurm_config,
    )


def _make_decoder(settings: dict, args: argparse.Namespace) -> Decode:
    nj = max(args.nj, 1)
    if "decoding" not in settings:
        return _espnet_decoder(args, 1 if args.ngpu else nj)
    decoding = settings["decoding"]
    if args.inference_args:
        raise UserError(f"--inference_args is for ESPnet's search; {decoding} takes its settings from the YAML")
    if args.lm_file:
        raise UserError(f"--use_lm true: the neural LM is for ESPnet's search; {decoding} has none")
    import torch

    from espnet_lmu.decoding.greedy import decode_greedy
    from espnet_lmu.decoding.pieces import ModelFiles, decode_set

    # Not is_available(): it starts CUDA, which then does not survive the fork of the pieces.
    if args.ngpu and not torch.cuda.device_count():
        raise UserError("no usable GPU here; decode with --ngpu 0")
    if nj > 1:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    decode_set = functools.partial(
        decode_set,
        files=ModelFiles(args.asr_train_config, args.asr_model_file, "cuda" if args.ngpu else "cpu"),
        batch_size=settings["batch_size"],
        # A GPU serves one process, unless the search on the CPU is most of the work.
        nj=1 if args.ngpu and decoding == "greedy" else nj,
        cmd=args.cmd,
        slurm_config=args.slurm_config,
    )
    if decoding == "ctc_beam":
        return _beam_decoder(settings, args, decode_set)
    return lambda name: decode_set(decode_greedy, args.data_feats / name, output_dir=args.decode_dir / name)[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.decoding.decode", description=__doc__)
    parser.add_argument("--inference_config", type=Path, metavar="YAML", help="decoding settings (default: greedy)")
    parser.add_argument("--inference_args", default="", help="further arguments of ESPnet's asr_inference")
    parser.add_argument("--nj", type=int, default=1, help="number of processes, or of Slurm's jobs (%(default)s)")
    parser.add_argument("--ngpu", type=int, default=0, help="0: CPU, otherwise one GPU (%(default)s)")
    parser.add_argument("--cmd", choices=["local", "slurm"], default="local", help="where they run (%(default)s)")
    parser.add_argument("--slurm_config", type=Path, metavar="YAML", help="settings of Slurm's jobs")
    parser.add_argument("--asr_train_config", type=Path, required=True, metavar="YAML", help="EXPDIR/config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, metavar="PTH", help="weights, in EXPDIR")
    for unit in NGRAM_UNITS:
        parser.add_argument(f"--{unit}_ngram", type=Path, metavar="BIN", help=f"n-gram of {unit}s from stage 9")
    parser.add_argument("--lm_train_config", type=Path, metavar="YAML", help="neural LM: config.yaml (ESPnet's search)")
    parser.add_argument("--lm_file", type=Path, metavar="PTH", help="neural LM: weights")
    parser.add_argument("--data_feats", type=Path, required=True, metavar="DIR", help="formatted data: DIR/SET")
    parser.add_argument("--decode_dir", type=Path, required=True, metavar="DIR", help="text, token, ... go to DIR/SET")
    parser.add_argument("--valid_set", metavar="SET", help="where lists of lm_weight and insertion_score are tried")
    parser.add_argument("test_sets", metavar="SET", nargs="+", help="name of a test set")
    args = parser.parse_args()

    settings = read_settings(args.inference_config)
    for path in (args.asr_train_config, args.asr_model_file):
        if not path.exists():
            raise UserError(f"{path}: no such file; train first, or choose another model (--inference_asr_model)")
    for name in args.test_sets:
        experiment, data_dir = args.asr_train_config.parent, args.data_feats / name
        check_features(str(experiment), read_features(experiment), read_features(data_dir), str(data_dir))
    decode = _make_decoder(settings, args)
    for name in args.test_sets:
        write_hypotheses(args.decode_dir / name, decode(name))


if __name__ == "__main__":
    command_line(main)
