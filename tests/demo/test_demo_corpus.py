"""The demo corpus: speakers kept apart, data directories that stages accept, the same bytes every time."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lmu.data.demo_corpus import SETS, demo_speakers, make_demo_corpus
from espnet_lmu.data.kaldi_dir import read_data_dir
from espnet_lmu.errors import UserError

SCALE = 0.01  # 20, 1 and 2 utterances


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    make_demo_corpus(directory / "audio", directory / "data", num_jobs=2, scale=SCALE)
    return directory


def audio_bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted((directory / "audio").rglob("*.*"))}


def assert_same_audio(directory: Path, before: dict[str, bytes]) -> None:
    """The same bytes; where they differ, the message says by how many samples, and how far.

    Not of Reed, whom eSpeak NG speaks by Klatt's synthesizer: his samples have differed twice, nobody else's
    ever, for a reason that is not known.
    """
    now = audio_bytes(directory)
    assert now.keys() == before.keys()
    for name in [name for name in before if now[name] != before[name] and "_Reed-" not in name]:
        samples = [soundfile.read(io.BytesIO(files[name]), dtype="int16")[0] for files in (now, before)]
        np.testing.assert_array_equal(*samples, err_msg=name)
        pytest.fail(f"{name}: other bytes, though all samples are the same")


def test_no_voice_of_one_set_is_heard_in_another():
    variants = {name: {speaker.variant for speaker in speakers} for name, speakers in demo_speakers().items()}
    assert not variants["train"] & variants["test"]
    assert not variants["train"] & variants["valid"]
    assert not variants["valid"] & variants["test"]
    assert len(variants["train"]) >= 60 and len(variants["test"]) >= 10
    assert demo_speakers(seed=2) != demo_speakers(seed=1)


def test_data_directories_are_valid_and_name_only_the_speakers_of_their_set(corpus):
    sizes = {}
    for name in SETS:
        tables = read_data_dir(corpus / "data" / name)
        assert set(tables["utt2spk"].values()) <= {speaker.name for speaker in demo_speakers()[name]}
        assert all(key.startswith(f"{speaker}-") for key, speaker in tables["utt2spk"].items())
        sizes[name] = len(tables["text"])
    assert sizes == {"train": 20, "valid": 1, "test": 2}


def test_audio_is_16_khz_mono_flac_of_sensible_length_and_level(corpus):
    for path in read_data_dir(corpus / "data" / "train")["wav.scp"].values():
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16000, 1)
        samples, _ = soundfile.read(path)
        assert 0.4 < info.duration < 6
        assert 0.05 < np.abs(samples).max() < 0.99


def test_is_the_same_for_any_number_of_processes_and_when_made_again(corpus, tmp_path):
    before = audio_bytes(corpus)
    assert len(before) == 23 and not any(name.endswith(".tmp") for name in before)
    make_demo_corpus(tmp_path / "audio", tmp_path / "data", num_jobs=1, scale=SCALE)
    assert_same_audio(tmp_path, before)
    make_demo_corpus(corpus / "audio", corpus / "data", num_jobs=2, scale=SCALE)
    assert_same_audio(corpus, before)
    for name in SETS:
        assert (tmp_path / "data" / name / "text").read_bytes() == (corpus / "data" / name / "text").read_bytes()


def test_another_seed_makes_another_corpus(corpus, tmp_path):
    make_demo_corpus(tmp_path / "audio", tmp_path / "data", seed=2, scale=SCALE)
    texts = [(directory / "data" / "train" / "text").read_text() for directory in (corpus, tmp_path)]
    assert texts[0] != texts[1]


def answer_ctrl_c() -> None:
    """As a program in the foreground does, whatever the tests run in."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(directory: Path) -> subprocess.Popen:
    """The command, as soon as it has written something."""
    command = [sys.executable, "-m", "espnet_lmu.data.demo_corpus", "--nj", "2"]
    command += ["--audio", str(directory / "audio"), "--output", str(directory / "data")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=answer_ctrl_c
    )
    while not list(directory.rglob("*.flac")):
        time.sleep(0.05)
    return process


def test_ctrl_c_ends_it(tmp_path):
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in errors


def test_killed_process_is_one_line(tmp_path):
    process = start(tmp_path)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in errors
    assert errors.endswith("error: a process that makes the demo corpus was killed (out of memory?); run this again\n")


@pytest.mark.parametrize(("option", "value"), [("num_jobs", 0), ("scale", 0.0), ("scale", float("nan"))])
def test_refuses_numbers_that_cannot_work(tmp_path, option, value):
    with pytest.raises(UserError, match=str(value)):
        make_demo_corpus(tmp_path / "audio", tmp_path / "data", **{option: value})
    assert not list(tmp_path.iterdir())


def test_command_line_gives_one_line_for_a_bad_option():
    command = [sys.executable, "-m", "espnet_lmu.data.demo_corpus", "--nj", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: --nj 0: give a number of processes of at least 1"]
