"""Language models: their text, n-grams and lexicons, and the recipe's stages 6 to 9 and 12 with them."""

import fcntl
import gzip
import re
import shutil
import subprocess
import sys

import pytest
from recipe_tools import ROOT, make_set, one_line_error, run_module

from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.errors import UserError
from espnet_lmu.lm import kenlm
from espnet_lmu.lm.ngram import WORD_END, arpa_vocabulary, speller, write_lexicon
from espnet_lmu.lm.text import read_sentences, write_text

TOOLS = ROOT / "egs" / "TEMPLATE" / "tools" / "kenlm"
needs_kenlm = pytest.mark.skipif(
    not all((TOOLS / name).exists() or shutil.which(name) for name in kenlm.PROGRAMS),
    reason="KenLM is not built: python -m espnet_lmu.lm.kenlm egs/TEMPLATE/tools/kenlm",
)

ARPA = """\
\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t0
-0.5\t</s>\t0
-0.5\tLOW\t0
-0.5\tHIGH\t0

\\2-grams:
-0.1\tLOW HIGH

\\end\\
"""


def test_text_joins_transcripts_and_further_sentences(tmp_path):
    (tmp_path / "text").write_text("u1 LOW HIGH\nu2\nu3 MID\n")
    with gzip.open(tmp_path / "more text.gz", "wt") as stream:
        stream.write("HIGH HIGH\n\nLOW\n")
    write_text(tmp_path / "out", [tmp_path / "text"], [tmp_path / "more text.gz"])
    assert list(read_sentences(tmp_path / "out")) == ["LOW HIGH", "MID", "HIGH HIGH", "LOW"]
    ids = [line.split()[0] for line in (tmp_path / "out").read_text().splitlines()]
    assert len(set(ids)) == 4 and ids[:2] == ["u1", "u3"]
    write_text(tmp_path / "twice", [tmp_path / "text"], [tmp_path / "more text.gz"] * 2)
    assert len(read_table(tmp_path / "twice")) == 6
    with pytest.raises(UserError, match="the id u1 is in another text too"):
        write_text(tmp_path / "out", [tmp_path / "text"] * 2, [])
    with pytest.raises(UserError, match="nowhere: no such file"):
        write_text(tmp_path / "out", [tmp_path / "text"], [tmp_path / "nowhere"])


def test_words_of_an_arpa_file_packed_or_not(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    with gzip.open(tmp_path / "lm.arpa.gz", "wt") as stream:
        stream.write(ARPA)
    for name in ("lm.arpa", "lm.arpa.gz"):
        assert list(arpa_vocabulary(tmp_path / name)) == ["LOW", "HIGH"]
    (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5")
    with pytest.raises(UserError, match="lm.bin: KenLM's binary form"):
        list(arpa_vocabulary(tmp_path / "lm.bin"))
    (tmp_path / "text").write_text("LOW HIGH\n")
    with pytest.raises(UserError, match="text: not an ARPA file"):
        list(arpa_vocabulary(tmp_path / "text"))


def test_lexicon_spells_words_in_tokens_and_leaves_out_the_others(tmp_path, capsys):
    letters = ["<blank>", "<unk>", "<space>", "O", "L", "W", "<sos/eos>"]
    write_lexicon(tmp_path / "char.txt", ["LOW", "HIGH"], speller(letters, None), letters)
    assert (tmp_path / "char.txt").read_text() == "LOW\tL O W <space>\n"
    assert "1 words; without 1" in capsys.readouterr().out
    pieces = {"LOW": ["▁LO", "W"]}
    write_lexicon(tmp_path / "bpe.txt", pieces, pieces.__getitem__, ["<blank>", "<unk>", "▁LO", "W", "<sos/eos>"])
    assert (tmp_path / "bpe.txt").read_text() == f"LOW\t▁LO W\nLOW\t▁LO W {WORD_END}\n"
    with pytest.raises(UserError, match="none of the 1 words can be written in the tokens .low.; .*same case"):
        write_lexicon(tmp_path / "lower.txt", ["low"], speller(letters, None), letters)
    assert not (tmp_path / "lower.txt").exists()


def test_missing_compiler_is_named_with_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(kenlm.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs cmake, g.., make; Debian: apt install .*libboost-test-dev"):
        kenlm.find_programs(tmp_path / "kenlm")
    assert not (tmp_path / "kenlm").exists()


def test_source_archive_that_is_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(kenlm.shutil, "which", lambda name: name)
    (tmp_path / "kenlm.tar.gz").write_text("<html>")
    with pytest.raises(UserError, match="kenlm.tar.gz: not a complete archive of KenLM's source; fetch it again"):
        kenlm.build(tmp_path / "kenlm", tmp_path / "kenlm.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["kenlm.tar.gz"]


def test_neural_lm_is_trained_and_measured(recipe):
    """Stages 6 to 8; ESPnet's import (13 s) is paid by each."""
    _formatted(recipe)
    options = [*_options(), "--use_lm", "true", "--stage", "6", "--stop_stage", "8"]
    options += ["--lm_args", "--lm_conf unit=8 --lm_conf nlayers=1 --max_epoch 1 --batch_size 4"]
    result = recipe.run(*options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1epoch: train loss " in result.stdout and "CER" not in result.stdout
    lm = next((recipe.directory / "exp").glob("lm_train_lm_lstm_en_char*"))
    assert (lm / "valid.loss.ave.pth").exists()
    perplexity = float((lm / "perplexity_test" / "ppl").read_text())
    assert 1 < perplexity < 100 and f"perplexity of a char token: {perplexity}" in result.stdout.replace("\n", "")
    for stage, directory in ((6, recipe.directory / "exp" / "lm_stats_en_char"), (7, lm)):
        with open(directory.with_name(f".{directory.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            command = recipe.command(*options, "--stage", str(stage))
            with subprocess.Popen(command, cwd=recipe.directory, stdout=subprocess.PIPE, text=True) as run:
                assert f"Stage {stage}" in run.stdout.readline()
                assert "Waiting for another run that is at the same stages" in run.stdout.readline()
                run.kill()


@needs_kenlm
def test_ngrams_are_trained_kept_and_taken_from_an_arpa_file(recipe):
    _formatted(recipe)
    (recipe.directory / "more.txt").write_text("LOW LOW LOW\nMID HIGH\n")
    options = [*_options(), "--use_ngram", "true", "--stage", "9", "--stop_stage", "9", "--ngram_num", "2"]
    result = recipe.run(*options, "--lm_further_text", "more.txt")
    assert result.returncode == 0, result.stderr
    assert "lm_train.txt: 14 sentences" in result.stdout and ": perplexity " in result.stdout
    directory = recipe.directory / "exp" / "ngram"
    assert (directory / "token_en_char" / "2gram.bin").exists()
    assert "2gram.bin: kept" in recipe.run(*options, "--lm_further_text", "more.txt").stdout
    assert "kept" not in recipe.run(*options).stdout  # another text

    result = recipe.run(*options, "--ngram_unit", "word")
    assert result.returncode == 0, result.stderr
    lexicon = (directory / "word_en_char" / "2gram.lexicon.txt").read_text().splitlines()
    assert sorted(lexicon) == ["HIGH\tH I G H <space>", "LOW\tL O W <space>", "MID\tM I D <space>"]

    (recipe.directory / "mine.arpa").write_text(ARPA)
    result = recipe.run(*options, "--ngram_unit", "word", "--ngram_lm", "mine.arpa")
    assert result.returncode == 0, result.stderr
    assert len((directory / "word_en_char" / "mine.lexicon.txt").read_text().splitlines()) == 2
    message = one_line_error(recipe.run(*options, "--ngram_lm", "mine.arpa"))
    assert "none of its entries is in data/en_token_list/char/tokens.txt" in message
    (recipe.directory / "mine.arpa").write_text(ARPA.replace("2=1", "2=7"))
    message = one_line_error(recipe.run(*options, "--ngram_unit", "word", "--ngram_lm", "mine.arpa"))
    assert re.search("build_binary failed: .*[a-z]{3}.*mine.log", message), message
    assert not list(directory.rglob(".mine*"))
    assert "--ngram_num 9: give 2 to 6" in one_line_error(recipe.run(*options, "--ngram_num", "9"))


@pytest.mark.parametrize(
    ("yaml", "arguments", "message"),
    [
        ("decoding: ctc_beam\nngram: word\n", [], "run stage 9 with --use_ngram true --ngram_unit word"),
        ("decoding: ctc_beam\n", ["--lm_file", "lm.pth"], "the neural LM is for ESPnet's search; ctc_beam has none"),
        (
            "ctc_weight: 1.0\n",
            ["--lm_file", "a.pth", "--lm_train_config", "a.yaml"],
            "a.yaml: no such file; run stage 7",
        ),
    ],
)
def test_language_models_that_decoding_lacks_are_one_line(tmp_path, yaml, arguments, message):
    pytest.importorskip("flashlight.lib.text", reason="the prefix beam search needs flashlight-text")
    for name, content in {"decode.yaml": yaml, "config.yaml": "{}", "model.pth": ""}.items():
        (tmp_path / name).write_text(content)
    options = [
        "--inference_config",
        "decode.yaml",
        "--asr_train_config",
        "config.yaml",
        "--asr_model_file",
        "model.pth",
    ]
    options += ["--data_feats", "dump", "--decode_dir", "out", "--word_ngram", "nowhere.bin", *arguments, "test"]
    assert message in one_line_error(run_module("espnet_lmu.decoding.decode", *options, cwd=tmp_path))


def _options() -> list[str]:
    return ["--lang", "en", "--token_type", "char", "--nj", "1", "--python", sys.executable]


def _formatted(recipe) -> None:
    """Stages 1 to 5 of a corpus of tones."""
    for seed, (name, size) in enumerate({"train": 12, "valid": 3, "test": 3}.items()):
        make_set(recipe.directory / "source" / name, size, seed=100 * seed)
    result = recipe.run(*_options(), "--stop_stage", "5")
    assert result.returncode == 0, result.stdout + result.stderr
