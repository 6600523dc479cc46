"""Stage 5: token lists in the layout that ESPnet and CTC rely on."""

import re

import pytest
import sentencepiece
from recipe_tools import one_line_error, run_module

from espnet_lmu import tokens
from espnet_lmu.data.kaldi_dir import write_table


@pytest.fixture
def text(tmp_path):
    write_table(tmp_path / "text", {f"u{i}": words for i, words in enumerate(["GO LEFT", "GO", "STOP", "", "LEFT GO"])})
    return tmp_path / "text"


def make(*arguments):
    result = run_module("espnet_lmu.tokens", *arguments)
    assert result.returncode == 0, result.stderr
    return (arguments[-1] / "tokens.txt").read_text().splitlines(), result.stdout


def test_characters_by_frequency_between_the_special_symbols(text, tmp_path):
    found, _ = make("--token_type", "char", text, tmp_path / "char")
    assert found[:2] == ["<blank>", "<unk>"] and found[-1] == "<sos/eos>"
    assert found[2:-1] == ["O", "G", "T", "<space>", "E", "F", "L", "P", "S"]


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_bpe_pieces_are_those_of_the_model(text, tmp_path, mode):
    found, _ = make("--nbpe", 14, "--bpemode", mode, text, tmp_path / "bpe")
    assert found[:2] == ["<blank>", "<unk>"] and found[-1] == "<sos/eos>" and len(set(found)) == len(found)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe" / "bpe.model"))
    for words in ("GO LEFT", "STOP"):
        pieces = model.encode(words, out_type=str)
        assert set(pieces) <= set(found) and model.decode(pieces) == words


def test_texts_are_taken_as_they_are(tmp_path):
    """Ligatures, wide letters and accents that Unicode could write otherwise: what is recognized is scored as it is."""
    texts = ["\ufb01ne \uff47\uff4f", "to\u0302i", "t\u00f4i stra\u017fe \u00bd"]
    write_table(tmp_path / "text", {f"u{i}": words for i, words in enumerate(texts)})
    make("--nbpe", 60, tmp_path / "text", tmp_path / "bpe")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe" / "bpe.model"))
    assert [model.decode(model.encode(words)) for words in texts] == texts


def test_small_corpus_gets_fewer_pieces_instead_of_an_error(text, tmp_path):
    found, _ = make("--nbpe", 500, text, tmp_path / "bpe")
    assert 3 < len(found) < 500


def test_list_is_kept_until_the_text_or_the_options_change(text, tmp_path):
    make("--token_type", "char", text, tmp_path / "list")
    assert "tokens.txt: kept" in make("--token_type", "char", text, tmp_path / "list")[1]
    make("--nbpe", 20, text, tmp_path / "bpe")
    for name in ("bpe.model", "tokens.txt"):
        (tmp_path / "bpe" / name).unlink()
        assert "tokens.txt: kept" not in make("--nbpe", 20, text, tmp_path / "bpe")[1]
        assert (tmp_path / "bpe" / name).exists()
    assert "tokens.txt: kept" in make("--nbpe", 20, text, tmp_path / "bpe")[1]
    write_table(text, {"u": "NEW"})
    found, output = make("--token_type", "char", text, tmp_path / "list")
    assert "tokens.txt: kept" not in output and found[2:-1] == ["E", "N", "W"]


def test_text_without_words_and_impossible_sizes_are_one_line(text, tmp_path):
    for size, advice in ((2, "give more"), (4, r"give \d+ or more")):
        result = run_module("espnet_lmu.tokens", "--nbpe", size, text, tmp_path / "bpe")
        assert re.search(f"--nbpe {size}: too few for the characters of the text; {advice}$", one_line_error(result))
    assert not (tmp_path / "bpe" / "tokens.txt").exists()
    write_table(text, {"u": ""})
    assert "text: no words" in one_line_error(run_module("espnet_lmu.tokens", text, tmp_path / "bpe"))


def test_character_ties_are_alphabetical():
    assert tokens.character_tokens(["BA", "AB"]) == ["A", "B"]
