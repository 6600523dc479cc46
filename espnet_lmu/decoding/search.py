"""ESPnet's beam search (``espnet2.bin.asr_inference``) over a data directory, split over several processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import yaml

from espnet_lmu.data.files import shorten
from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.decoding.pieces import read_inputs, read_train_config
from espnet_lmu.decoding.results import FILES, Hypothesis
from espnet_lmu.errors import UserError

_KINDS = {"wav.scp": "sound", "feats.scp": "kaldi_ark"}
_SHORTEST = 0.025  # seconds: one analysis window; asr_inference stops with an error at half of it


def _check_ctc_weight(train_config: dict, inference_config: dict, arguments: list[str]) -> None:
    """A model without decoder needs ``ctc_weight: 1.0``; with ESPnet's default, 0.5, it outputs garbage silently."""
    if train_config.get("decoder") is not None and train_config.get("model_conf", {}).get("ctc_weight") != 1.0:
        return
    weight = inference_config.get("ctc_weight", 0.5)
    if "--ctc_weight" in arguments[:-1]:
        weight = arguments[len(arguments) - 1 - arguments[::-1].index("--ctc_weight") + 1]
    if float(weight) != 1.0:
        raise UserError(f"ctc_weight {weight}: this model has CTC only; decode it with ctc_weight 1.0")


def _read_log(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def decode_beam(
    data_dir: Path,
    config_file: Path,
    model_file: Path,
    output_dir: Path,
    inference_config: Path | None,
    arguments: str,
    nj: int,
    ngpu: int,
) -> dict[str, Hypothesis]:
    """Run asr_inference in `nj` processes; their files and logs stay in ``output_dir/logdir``.

    Args:
        inference_config: ESPnet's decoding options as YAML.
        arguments: further command-line arguments of asr_inference.
    """
    from tqdm import tqdm

    train_config = read_train_config(config_file)
    settings = yaml.safe_load(inference_config.read_text(encoding="utf-8")) or {} if inference_config else {}
    extra = shlex.split(arguments)
    _check_ctc_weight(train_config, settings, extra)

    scp, table, durations = read_inputs(data_dir, train_config)
    short = sorted(key for key in durations if durations[key] < _SHORTEST)
    keys = [key for key in table if key not in set(short)]
    hypotheses = {key: Hypothesis() for key in short}
    if short:
        print(f"{data_dir.name}: {len(short)} utterances are too short for the model, no words: {shorten(short)}")

    logdir = output_dir / "logdir"
    nj = max(1, min(nj, len(keys)))
    jobs = []
    for job in range(nj):
        part = keys[len(keys) * job // nj : len(keys) * (job + 1) // nj]
        key_file, log = logdir / f"keys.{job + 1}.scp", logdir / f"asr_inference.{job + 1}.log"
        output = logdir / f"output.{job + 1}"
        write_table(key_file, dict.fromkeys(part, "-"))
        command = [sys.executable, "-m", "espnet_lmu.run", "-m", "espnet2.bin.asr_inference", "--ngpu", str(ngpu)]
        command += ["--data_path_and_name_and_type", f"{data_dir / scp},speech,{_KINDS[scp]}"]
        command += ["--key_file", str(key_file), "--output_dir", str(output)]
        command += ["--asr_train_config", str(config_file), "--asr_model_file", str(model_file)]
        command += ["--config", str(inference_config)] if inference_config else []
        with open(log, "w", encoding="utf-8") as stream:
            # A process each: torch's own threads would compete with them.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen([*command, *extra], stdout=stream, stderr=subprocess.STDOUT, env=environment)
        jobs.append((process, log, output / "1best_recog"))
    try:
        with tqdm(desc=f"decode {data_dir.name}", total=len(keys), unit="utt", dynamic_ncols=True) as bar:
            while True:
                running = [process for process, _, _ in jobs if process.poll() is None]
                # asr_inference logs this line once an utterance
                done = sum(_read_log(log).count("speech length:") for _, log, _ in jobs)
                bar.update(min(done, len(keys)) - bar.n)
                if not running:
                    break
                time.sleep(1)
    finally:
        for process, _, _ in jobs:
            if process.poll() is None:
                process.terminate()
    for process, log, _ in jobs:
        if process.returncode:
            lines = _read_log(log).strip().splitlines()
            raise UserError(f"asr_inference failed: {lines[-1] if lines else 'no message'} (log: {log})")

    for _, _, directory in jobs:
        tables = {name: read_table(directory / name) for name in FILES}
        for key in tables["score"]:
            hypotheses[key] = Hypothesis(**{name: tables[name].get(key, "") for name in FILES})
    return hypotheses
