"""Corpora in the layouts they are distributed in: sets, unions of sets, transcripts and segments; stages 1 to 5."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipe_tools import RATE, ROOT, one_line_error, run_module, tone_words

from espnet_lmu.data.corpora import CORPORA, download
from espnet_lmu.data.kaldi_dir import read_data_dir, read_table
from espnet_lmu.errors import UserError


@pytest.fixture
def librispeech(tmp_path) -> Path:
    """The folder LibriSpeech with two speakers in each of three parts."""
    root = tmp_path / "LibriSpeech"
    for number, part in enumerate(("train-mini", "dev-clean", "dev-other")):
        for speaker in (10 + number, 20 + number):
            folder = root / part / str(speaker) / "7"
            folder.mkdir(parents=True)
            names = [f"{speaker}-7-{i:04d}" for i in range(2)]
            for name in names:
                soundfile.write(folder / f"{name}.flac", np.zeros(1600), RATE)
            lines = "".join(f"{name} SOME WORDS {name[-1]}\n" for name in names)
            (folder / f"{speaker}-7.trans.txt").write_text(lines)
    return root


def prepare(name: str, corpus: Path, *sets: str):
    return run_module("espnet_lmu.data.corpora", "--corpus", corpus, name, *sets, cwd=corpus.parent)


def test_librispeech_set_is_named_for_its_part_and_a_union_has_both_parts(librispeech):
    result = prepare("librispeech", librispeech, "train_mini", "dev", "dev_other", "dev")
    assert result.returncode == 0, result.stderr
    data = librispeech.parent / "data"
    tables = {name: read_data_dir(data / name) for name in ("train_mini", "dev", "dev_other")}
    assert list(tables["train_mini"]["text"]) == ["10-7-0000", "10-7-0001", "20-7-0000", "20-7-0001"]
    assert tables["train_mini"]["text"]["20-7-0001"] == "SOME WORDS 1"
    assert tables["train_mini"]["utt2spk"]["20-7-0001"] == "20"
    assert tables["train_mini"]["wav.scp"]["20-7-0001"] == str(librispeech / "train-mini/20/7/20-7-0001.flac")
    assert sorted(set(tables["dev"]["utt2spk"].values())) == ["11", "12", "21", "22"]
    assert sorted(set(tables["dev_other"]["utt2spk"].values())) == ["12", "22"]


def test_missing_part_and_missing_transcripts_are_one_line(librispeech):
    message = one_line_error(prepare("librispeech", librispeech, "train_460", "dev"))
    assert "LibriSpeech/train-clean-100: no such folder" in message
    for path in (librispeech / "train-mini").rglob("*.txt"):
        path.unlink()
    message = one_line_error(prepare("librispeech", librispeech, "train_mini"))
    assert "train-mini: 4 utterances lack a line in a .trans.txt: 10-7-0000, 10-7-0001, " in message
    (librispeech / "dev-clean/11/7/11-7-0001.flac").unlink()
    message = one_line_error(prepare("librispeech", librispeech, "dev_clean"))
    assert "dev-clean: 1 utterances lack audio: 11-7-0001; unpack it again" in message
    (librispeech / "dev-other/12/7/12-7-0001.flac").write_bytes(b"")
    message = one_line_error(prepare("librispeech", librispeech, "dev_other"))
    assert "dev-other: cannot be read (" in message and "12-7-0001.flac" in message and len(message) < 1000
    assert not (librispeech.parent / "data").exists()


def test_relative_folder_is_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBRISPEECH", "corpora/LibriSpeech")
    result = run_module("espnet_lmu.data.corpora", "librispeech", "dev", cwd=tmp_path)
    assert f"error: {tmp_path}/corpora/LibriSpeech/dev-clean: no such folder" in one_line_error(result)


def test_download_of_a_part_that_does_not_exist_is_one_line(tmp_path):
    result = run_module("espnet_lmu.data.corpora", "librispeech", "train_cleam_100", cwd=tmp_path)
    assert "train-cleam-100: no parts of LibriSpeech" in one_line_error(result)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"<html>log in first</html>",
        lambda content: content[:200] + bytes(100) + content[300:],
    ],
)
def test_damaged_archive_of_a_download_is_one_line(tmp_path, damage):
    def unpack(folder, parts):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.add(__file__, "dev-clean/file")
        with tarfile.open(fileobj=io.BytesIO(damage(packed.getvalue()))) as tar:
            tar.extractall(folder)

    message = f"LibriSpeech: download failed .*; start again.* from {tmp_path}.*LIBRISPEECH=DIR"
    with pytest.raises(UserError, match=message):
        download(CORPORA["librispeech"]._replace(download=unpack), tmp_path, ["dev-clean"])


def recipe_of(name: str, tmp_path: Path) -> Path:
    """A copy of a recipe's run.sh and local, beside links to what it refers to."""
    (tmp_path / "egs").mkdir()
    (tmp_path / "egs" / "TEMPLATE").symlink_to(ROOT / "egs" / "TEMPLATE")
    for folder in ("conf", "espnet_lmu"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    recipe = tmp_path / "egs" / name / "asr1"
    shutil.copytree(ROOT / "egs" / name / "asr1" / "local", recipe / "local")
    shutil.copy(ROOT / "egs" / name / "asr1" / "run.sh", recipe)
    return recipe


def run(recipe: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["./run.sh", "--python", sys.executable, "--ngpu", "0", "--nj", "1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=recipe, env=environment, capture_output=True, text=True)


def test_tedlium_segments_go_through_stages_1_to_4(tmp_path):
    root = tmp_path / "TEDLIUM_release-3"
    words = ["LOW", "HIGH", "MID", "LOW"] * 3
    for part in ("train", "dev", "test"):
        for folder in ("sph", "stm"):
            (root / "legacy" / part / folder).mkdir(parents=True)
        samples = (tone_words(words) * 32767).astype(np.int16)  # 3.6 s
        name = f"{part.title()}Talk_2010"
        sphere = root / "legacy" / part / "sph" / f"{name}.sph"
        soundfile.write(sphere, samples, RATE, format="NIST", subtype="PCM_16")
        lines = [
            f"{name} 1 {name} 0.30 1.20 <o,f0,male> we 're high(2) <sil> mid {{NOISE}} ' cause",
            f"{name} 1 inter_segment_gap 1.20 1.50 <o,,unknown> ignore_time_segment_in_scoring",
            f"{name} 1 {name} 1.50 3.90 <o,f0,male> low <unk> high mid",  # 0.3 s after the end of the audio
        ]
        (root / "legacy" / part / "stm" / f"{name}.stm").write_text("".join(f"{line}\n" for line in lines))
    recipe = recipe_of("tedlium3", tmp_path)
    result = run(recipe, "--stop_stage", "4", "--speed_perturb_factors", "1.0", TEDLIUM=str(root))
    assert result.returncode == 0, result.stderr
    tables = read_data_dir(recipe / "data" / "train")
    assert tables["wav.scp"] == {"TrainTalk_2010": str(root / "legacy/train/sph/TrainTalk_2010.sph")}
    assert tables["text"] == {"TrainTalk_2010-0": "we're high mid 'cause", "TrainTalk_2010-2": "low high mid"}
    assert tables["segments"]["TrainTalk_2010-2"] == "TrainTalk_2010 1.500000 3.600000"
    for name in ("train_sp", "dev", "test"):
        lengths = read_table(recipe / "dump" / "raw" / name / "utt2num_samples")
        assert sorted(lengths.values()) == [str(int(0.9 * RATE)), str(int(2.1 * RATE))]
    path = read_table(recipe / "dump" / "raw" / "dev" / "wav.scp")["DevTalk_2010-0"]
    cut, _ = soundfile.read(recipe / path, dtype="int16")
    assert np.array_equal(cut, samples[int(0.3 * RATE) : int(1.2 * RATE)])


def test_aishell_makes_characters_of_its_transcripts(tmp_path):
    root = tmp_path / "aishell"
    transcripts = {}
    for number, part in enumerate(("train", "dev", "test")):
        folder = root / "data_aishell" / "wav" / part / f"S000{number}"
        folder.mkdir(parents=True)
        for i in range(2):
            utterance = f"BAC009S000{number}W012{i}"
            soundfile.write(folder / f"{utterance}.wav", tone_words(["LOW", "HIGH", "MID"] * 3, seed=i), RATE)
            transcripts[utterance] = "而 对 楼市 成交 ｔ恤" if i else "今天 天气 好"
    (root / "data_aishell" / "transcript").mkdir()
    lines = "".join(f"{key} {text}\n" for key, text in transcripts.items())
    (root / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt").write_text(lines, encoding="utf-8")
    recipe = recipe_of("aishell", tmp_path)
    result = run(recipe, "--stop_stage", "5", "--speed_perturb_factors", "1.0", AISHELL=str(root))
    assert result.returncode == 0, result.stderr
    assert read_table(recipe / "data" / "dev" / "text") == {
        "BAC009S0001W0120": "今天天气好",
        "BAC009S0001W0121": "而对楼市成交T恤",
    }
    assert read_table(recipe / "data" / "dev" / "utt2spk")["BAC009S0001W0121"] == "S0001"
    tokens = (recipe / "data" / "zh_token_list" / "char" / "tokens.txt").read_text(encoding="utf-8").split()
    assert tokens[:3] == ["<blank>", "<unk>", "天"] and len(tokens) == 3 + 12


def test_a_corpus_of_ones_own_as_the_page_on_recipes_shows_it(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = []
    for number, name in enumerate(("train", "valid", "test")):
        for i, suffix in enumerate(("wav", "flac")):
            rate = 8000 if name == "train" else RATE
            soundfile.write(corpus / f"{name}{i}.{suffix}", tone_words(["LOW", "HIGH", "MID"] * 2, seed=i), rate)
            rows.append(f'{name},{name}{i}.{suffix},speaker{number},"low high, mid"')
    (corpus / "table.csv").write_text("".join(f"{row}\n" for row in rows))
    recipe_of("an4", tmp_path)
    script = re.search(r"```sh\n(.*?)```", (ROOT / "egs" / "README.md").read_text(), re.DOTALL)[1]
    # The last line, shortened to the stages before training.
    script = script.replace("CORPUS=/corpus ./run.sh", f"CORPUS={corpus} ./run.sh --stop_stage 5 --nj 1 --nbpe 16")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euc", script]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    recipe = tmp_path / "egs" / "mine" / "asr1"
    assert read_table(recipe / "dump" / "raw" / "train" / "text")["speaker0-train1"] == "low high, mid"
    assert "sample_rate" in result.stdout and "(8000 Hz)" in result.stdout
    assert (recipe / "data" / "token_list" / "bpe_unigram16" / "tokens.txt").exists()
