"""Stage 12: decode one data directory, by greedy CTC or by ESPnet's search, as the decoding configuration says."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from espnet_lmu.data.files import command_line
from espnet_lmu.decoding.results import write_hypotheses
from espnet_lmu.errors import UserError

_GREEDY_DEFAULTS = {"decoding": "greedy", "batch_size": 16}


def read_settings(path: Path | None) -> dict:
    """Settings of a decoding configuration; without a file, greedy decoding.

    Raises:
        UserError: the file is no YAML mapping, or greedy decoding has a setting that it does not know.
    """
    if path is None:
        return dict(_GREEDY_DEFAULTS)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected lines of NAME: VALUE")
    decoding = settings.get("decoding", "search")
    if decoding not in ("greedy", "search"):
        raise UserError(f"{path}: decoding: {decoding}: give greedy, or leave it out for ESPnet's search")
    if decoding == "greedy":
        unknown = sorted(set(settings) - set(_GREEDY_DEFAULTS))
        if unknown:
            raise UserError(f"{path}: greedy decoding has no setting {unknown[0]}; it has batch_size")
        settings = _GREEDY_DEFAULTS | settings
        size = settings["batch_size"]
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{path}: batch_size: {size}: give a whole number of utterances")
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.decoding.decode", description=__doc__)
    parser.add_argument("--inference_config", type=Path, metavar="YAML", help="decoding settings (default: greedy)")
    parser.add_argument("--inference_args", default="", help="further arguments of ESPnet's asr_inference")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (%(default)s)")
    parser.add_argument("--ngpu", type=int, default=0, help="0: CPU, otherwise one GPU (%(default)s)")
    parser.add_argument("--asr_train_config", type=Path, required=True, metavar="YAML", help="EXPDIR/config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, metavar="PTH", help="weights, in EXPDIR")
    parser.add_argument("--data_feats", type=Path, required=True, metavar="DIR", help="formatted data: DIR/SET")
    parser.add_argument("--decode_dir", type=Path, required=True, metavar="DIR", help="text, token, ... go to DIR/SET")
    parser.add_argument("test_sets", metavar="SET", nargs="+", help="name of a test set")
    args = parser.parse_args()

    settings = read_settings(args.inference_config)
    greedy = settings.get("decoding") == "greedy"
    if greedy and args.inference_args:
        raise UserError("--inference_args is for ESPnet's search; greedy decoding takes its settings from the YAML")
    for path in (args.asr_train_config, args.asr_model_file):
        if not path.exists():
            raise UserError(f"{path}: no such file; train first, or choose another model (--inference_asr_model)")
    # A GPU serves one process.
    nj = 1 if args.ngpu else max(args.nj, 1)
    if greedy:
        import torch

        from espnet_lmu.decoding.greedy import GreedyDecoder, decode_greedy
        from espnet_lmu.lmu.products import use_fast_products

        if args.ngpu and not torch.cuda.is_available():
            raise UserError("no usable GPU here; decode with --ngpu 0")
        if nj > 1:
            torch.set_num_threads(1)
        use_fast_products()
        decoder = GreedyDecoder(args.asr_train_config, args.asr_model_file, "cuda" if args.ngpu else "cpu")
    else:
        from espnet_lmu.decoding.search import decode_beam
    for name in args.test_sets:
        data_dir, output_dir = args.data_feats / name, args.decode_dir / name
        if greedy:
            hypotheses = decode_greedy(data_dir, decoder, settings["batch_size"], nj)
        else:
            hypotheses = decode_beam(
                data_dir,
                args.asr_train_config,
                args.asr_model_file,
                output_dir,
                args.inference_config,
                args.inference_args,
                nj,
                min(args.ngpu, 1),
            )
        write_hypotheses(output_dir, hypotheses)


if __name__ == "__main__":
    command_line(main)
