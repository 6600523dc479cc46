"""LibriSpeech: sets and unions of sets from the corpus as distributed."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipe_tools import one_line_error, run_module

from espnet_lmu.data.kaldi_dir import read_data_dir


@pytest.fixture
def corpus(tmp_path) -> Path:
    """The folder LibriSpeech with two speakers in each of three parts."""
    root = tmp_path / "LibriSpeech"
    for number, part in enumerate(("train-mini", "dev-clean", "dev-other")):
        for speaker in (10 + number, 20 + number):
            folder = root / part / str(speaker) / "7"
            folder.mkdir(parents=True)
            names = [f"{speaker}-7-{i:04d}" for i in range(2)]
            for name in names:
                soundfile.write(folder / f"{name}.flac", np.zeros(1600), 16000)
            lines = "".join(f"{name} SOME WORDS {name[-1]}\n" for name in names)
            (folder / f"{speaker}-7.trans.txt").write_text(lines)
    return root


def prepare(corpus: Path, *sets: str):
    return run_module("espnet_lmu.data.librispeech", "--corpus", corpus, *sets, cwd=corpus.parent)


def test_set_is_named_for_its_part_and_a_union_has_both_parts(corpus):
    result = prepare(corpus, "train_mini", "dev", "dev_other", "dev")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    tables = {name: read_data_dir(corpus.parent / "data" / name) for name in ("train_mini", "dev", "dev_other")}
    assert list(tables["train_mini"]["text"]) == ["10-7-0000", "10-7-0001", "20-7-0000", "20-7-0001"]
    assert tables["train_mini"]["text"]["20-7-0001"] == "SOME WORDS 1"
    assert tables["train_mini"]["utt2spk"]["20-7-0001"] == "20"
    assert tables["train_mini"]["wav.scp"]["20-7-0001"] == str(corpus / "train-mini/20/7/20-7-0001.flac")
    assert sorted(set(tables["dev"]["utt2spk"].values())) == ["11", "12", "21", "22"]
    assert sorted(set(tables["dev_other"]["utt2spk"].values())) == ["12", "22"]


def test_missing_part_and_missing_transcripts_are_one_line(corpus):
    assert "LibriSpeech/train-clean-100: no such folder" in one_line_error(prepare(corpus, "train_460", "dev"))
    for path in (corpus / "train-mini").rglob("*.txt"):
        path.unlink()
    assert "train-mini: no transcripts" in one_line_error(prepare(corpus, "train_mini"))
    assert not (corpus.parent / "data").exists()


def test_download_of_a_part_that_does_not_exist_is_one_line(tmp_path):
    result = run_module("espnet_lmu.data.librispeech", "train_cleam_100", cwd=tmp_path)
    assert "train-cleam-100: no parts of LibriSpeech" in one_line_error(result)
