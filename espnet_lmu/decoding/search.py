"""ESPnet's beam search (``espnet2.bin.asr_inference``) over a data directory, in pieces (`espnet_lmu.parallel`)."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from pathlib import Path

from espnet_lmu.data.files import read_yaml, shorten
from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.decoding.pieces import pieces_folder, read_inputs, read_train_config
from espnet_lmu.decoding.results import FILES, Hypothesis
from espnet_lmu.errors import UserError
from espnet_lmu.hook import check_arguments, ignore_espnets_warnings
from espnet_lmu.parallel import map_pieces
from espnet_lmu.progress import progress

_KINDS = {"wav.scp": "sound", "feats.scp": "kaldi_ark"}
_SHORTEST = 0.025  # seconds: one analysis window; asr_inference stops with an error at half of it


def _check_ctc_weight(train_config: dict, inference_config: dict, arguments: list[str]) -> None:
    """A model without decoder needs ``ctc_weight: 1.0``; with ESPnet's default, 0.5, it outputs garbage silently."""
    if train_config.get("decoder") is not None and train_config.get("model_conf", {}).get("ctc_weight") != 1.0:
        return
    parser = argparse.ArgumentParser(add_help=False)  # with the spellings that asr_inference takes
    parser.add_argument("--ctc_weight", nargs="?", default=inference_config.get("ctc_weight", 0.5))
    weight = parser.parse_known_args(arguments)[0].ctc_weight
    try:
        ctc_alone = float(weight) == 1.0
    except (TypeError, ValueError):
        ctc_alone = False
    if not ctc_alone:
        raise UserError(f"ctc_weight {weight}: this model has CTC only; decode it with ctc_weight 1.0")


def _import_asr_inference() -> None:
    ignore_espnets_warnings()
    from espnet2.bin import asr_inference  # noqa: F401

    from espnet_lmu.lmu.products import use_fast_products

    use_fast_products()


def search_piece(arguments: list[str], output: Path) -> dict[str, Hypothesis]:
    """Hypotheses of asr_inference with these command-line arguments; its files stay in `output`.

    Raises:
        UserError: it does not take the arguments.
    """
    _import_asr_inference()
    from espnet2.bin import asr_inference

    command = [*arguments, "--output_dir", str(output)]
    check_arguments("asr_inference", asr_inference.get_parser(), command, "--inference_args or the --inference_config")
    asr_inference.main(cmd=command)
    tables = {name: read_table(output / "1best_recog" / name) for name in FILES}
    return {key: Hypothesis(**{name: tables[name].get(key, "") for name in FILES}) for key in tables["score"]}


def decode_beam(
    data_dir: Path,
    config_file: Path,
    model_file: Path,
    output_dir: Path,
    inference_config: Path,
    arguments: str,
    ngpu: int,
    *,
    nj: int,
    **parallel,
) -> dict[str, Hypothesis]:
    """Run asr_inference on parts of a formatted data directory; its files and logs stay in ``output_dir/logdir``.

    Args:
        output_dir: below it unfinished pieces stay after a kill, for the next call.
        inference_config: ESPnet's decoding options as YAML.
        arguments: further command-line arguments of asr_inference.
        nj, parallel: of `map_pieces`.

    Raises:
        UserError: options that asr_inference or the model does not take, or pieces that failed.
    """
    train_config = read_train_config(config_file)
    settings = read_yaml(inference_config)
    try:
        extra = shlex.split(arguments)
    except ValueError as error:
        raise UserError(f"--inference_args {arguments}: {error}") from None
    _check_ctc_weight(train_config, settings, extra)

    scp, table, durations = read_inputs(data_dir, train_config)
    short = sorted(key for key in durations if durations[key] < _SHORTEST)
    keys = [key for key in table if key not in set(short)]
    hypotheses = {key: Hypothesis() for key in short}
    if short:
        print(f"{data_dir.name}: {len(short)} utterances are too short for the model, no words: {shorten(short)}")

    command = ["--ngpu", str(ngpu), "--data_path_and_name_and_type", f"{data_dir / scp},speech,{_KINDS[scp]}"]
    command += ["--asr_train_config", str(config_file), "--asr_model_file", str(model_file)]
    command += ["--config", str(inference_config), *extra]
    # More than processes, so that they end together and a kill costs little; but each loads the model.
    number = min(len(keys), 4 * nj)
    parts = [keys[len(keys) * i // number : len(keys) * (i + 1) // number] for i in range(number)]
    named = [Path(word) for word in [*extra, *map(str, settings.values())] if os.path.isfile(word)]  # LMs, say
    folder = pieces_folder(output_dir, [config_file, model_file, *named], command, settings, table, parts)
    pieces, sizes = {}, {}
    for i, part in enumerate(parts, 1):
        key_file, name = folder / f"keys.{i}.scp", f"asr_inference.{i}"
        write_table(key_file, dict.fromkeys(part, "-"))
        pieces[name] = ([*command, "--key_file", str(key_file)], folder / f"output.{i}")
        sizes[name] = len(part)
    if not ngpu:
        # CUDA does not survive a fork, and ESPnet asks for GPUs as it is imported: there each process does that.
        parallel["prepare"] = _import_asr_inference
    with progress(desc=f"decode {data_dir.name}", total=len(keys), unit="utt") as bar:
        results = map_pieces(
            search_piece,
            pieces,
            directory=folder,
            nj=nj,
            advance=lambda name: bar.update(sizes[name]),
            **parallel,
        )
    for result in results.values():
        hypotheses |= result
    for path in folder.glob("*.pickle"):
        path.unlink()
    shutil.rmtree(output_dir / "logdir", ignore_errors=True)
    os.replace(folder, output_dir / "logdir")
    shutil.rmtree(output_dir / "pieces")
    return hypotheses
