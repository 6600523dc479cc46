"""What the recipe tests share: a corpus of tones in place of speech, and a recipe in an empty directory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from espnet_lmu.data.kaldi_dir import write_data_dir

ROOT = Path(__file__).resolve().parents[2]
ASR_SH = ROOT / "egs" / "TEMPLATE" / "asr1" / "asr.sh"
RATE = 16000
PITCHES = {"LOW": 300.0, "MID": 900.0, "HIGH": 2500.0}  # Hz


def tone_words(words: list[str], seed: int = 0) -> np.ndarray:
    """0.25 s of a tone and 0.05 s of silence for each word, with a little noise."""
    noise = np.random.default_rng(seed)
    seconds = np.arange(RATE // 4) / RATE
    pieces = [np.append(0.3 * np.sin(2 * np.pi * PITCHES[word] * seconds), np.zeros(RATE // 20)) for word in words]
    samples = np.concatenate(pieces)
    return (samples + 0.01 * noise.standard_normal(len(samples))).astype(np.float32)


def make_set(directory: Path, size: int, seed: int = 0, suffix: str = "wav") -> Path:
    """A data directory of `size` utterances by two speakers, with their audio in ``DIRECTORY/audio``."""
    random = np.random.default_rng(seed)
    (directory / "audio").mkdir(parents=True)
    tables = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    for i in range(size):
        words = list(random.choice(list(PITCHES), size=random.integers(2, 5)))
        utterance = f"spk{i % 2}-{i:03d}"
        path = directory / "audio" / f"{utterance}.{suffix}"
        soundfile.write(path, tone_words(words, seed=seed + i), RATE)
        tables["wav.scp"][utterance] = str(path)
        tables["text"][utterance] = " ".join(words)
        tables["utt2spk"][utterance] = utterance.split("-")[0]
    write_data_dir(directory, tables)
    return directory


def run_module(module: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """``python -m MODULE ARGUMENT ...``"""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


class Recipe:
    """A recipe directory whose ``local/data.sh`` copies what the test put into ``source``."""

    def __init__(self, directory: Path):
        self.directory = directory
        (directory / "local").mkdir(parents=True)
        script = directory / "local" / "data.sh"
        script.write_text("#!/usr/bin/env bash\nmkdir -p data && cp -r source/* data/\n")
        script.chmod(0o755)

    def command(self, *arguments: str) -> list[str]:
        """``./run.sh ARGUMENT ...``"""
        sets = ["--train_set", "train", "--valid_set", "valid", "--test_sets", "test"]
        return [str(ASR_SH), *sets, "--python", sys.executable, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = self.command(*arguments)
        return subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True)


def one_line_error(result: subprocess.CompletedProcess) -> str:
    """The error line of a failed command; fails if there is no such line or a traceback."""
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]
