"""Error rates counted by hand, their table and alignments, and ids that do not match."""

import numpy as np
import pytest
import sentencepiece
from recipe_tools import run_module

from espnet_lmu.bin import main as command
from espnet_lmu.data.kaldi_dir import write_table
from espnet_lmu.errors import UserError
from espnet_lmu.scoring.bootstrap import bootstrap_interval
from espnet_lmu.scoring.error_rate import (
    align,
    count_errors,
    count_marks,
    read_alignments,
    read_marks,
    read_texts,
    score,
    split_characters,
    split_tokens,
    split_words,
    write_result,
)
from espnet_lmu.scoring.summary import score_decoding

REFERENCES = {"u1": "GO LEFT NOW", "u2": "STOP", "u3": "TURN BACK"}
HYPOTHESES = {"u1": "GO RIGHT", "u2": "STOP", "u3": "TURN BACK BACK"}


@pytest.fixture
def files(tmp_path):
    write_table(tmp_path / "ref", REFERENCES)
    write_table(tmp_path / "hyp", HYPOTHESES)
    return tmp_path / "ref", tmp_path / "hyp"


def test_word_counts_and_table_row():
    total, _ = score(REFERENCES, HYPOTHESES, split_words)
    assert (total.sentences, total.units, total.correct) == (3, 6, 4)
    assert (total.substitutions, total.deletions, total.insertions, total.wrong_sentences) == (1, 1, 1, 2)
    assert total.rate == 50
    assert total.row("test") == "|test|3|6|66.7|16.7|16.7|16.7|50.0|66.7|"


def test_alignments_show_every_unit_of_both_sides():
    _, alignments = score(REFERENCES, HYPOTHESES, split_words)
    blocks = dict(zip(REFERENCES, alignments.split("\n\n"), strict=True))
    assert blocks["u1"].splitlines() == [
        "id: u1",
        "scores (C S D I): 1 1 1 0",
        "REF: GO LEFT  NOW",
        "HYP: GO RIGHT *",
        "        S     D",
    ]
    assert "scores (C S D I): 2 0 0 1" in blocks["u3"]


def test_errors_of_utterances_add_up_to_the_error_rate():
    references = {"b": "ONE TWO THREE", "a": "FOUR", "c": ""}
    hypotheses = {"a": "FOR FIVE", "b": "TWO THREE", "c": "SIX"}
    counts = count_errors(count_marks(align(references, hypotheses, split_words)))
    assert counts.tolist() == [[2, 1, 1], [1, 3, 0]]
    total, _ = score(references, hypotheses, split_words)
    assert counts[0].sum() == total.errors and counts[1].sum() == total.units


def test_bootstrap_interval_is_that_of_the_binomial_distribution():
    wrong = np.zeros(400)
    wrong[:40] = 1
    low, high = bootstrap_interval(np.stack([wrong, np.ones(400)]))
    half = 1.96 * 100 * (0.1 * 0.9 / 400) ** 0.5
    assert abs(low - (10 - half)) < 0.5 and abs(high - (10 + half)) < 0.5
    assert bootstrap_interval(np.array([[0, 0], [5, 5]])) == (0, 0)


def test_what_is_written_is_read_again(tmp_path):
    references = {"a": "GO * LEFT NOW", "b": "", "c": "X"}
    hypotheses = {"a": "* LEFT OR NOW", "b": "Y", "c": ""}
    alignments = align(references, hypotheses, split_words)
    total, text = score(references, hypotheses, split_words)
    write_result(tmp_path / "result.txt", "test", total, text)
    assert read_alignments(tmp_path / "result.txt") == alignments
    assert read_marks(tmp_path / "result.txt").tolist() == count_marks(alignments).tolist()
    (tmp_path / "result.txt").write_text("id: a\nscores (C S D I): 1\n")
    for read in (read_alignments, read_marks):
        with pytest.raises(UserError, match="result.txt: no"):
            read(tmp_path / "result.txt")
    with pytest.raises(UserError, match="nowhere: No such file or directory; run stage 13 first"):
        read_marks(tmp_path / "nowhere")


def test_spaces_count_as_characters():
    total, _ = score({"u": "A  BC"}, {"u": "ABC"}, split_characters)
    assert (total.units, total.correct, total.deletions) == (4, 3, 1)


def test_tokens_are_those_of_the_bpe_model(tmp_path):
    texts, prefix = iter(["GO LEFT NOW", "STOP", "TURN BACK"] * 3), str(tmp_path / "bpe")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=texts, model_prefix=prefix, vocab_size=24, hard_vocab_limit=False, minloglevel=2
    )
    total, _ = score({"u": "GO LEFT"}, {"u": "GO"}, split_tokens(tmp_path / "bpe.model"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    assert total.units == len(model.encode("GO LEFT")) and total.correct == len(model.encode("GO"))
    (tmp_path / "bpe.model").write_text("x")
    with pytest.raises(UserError, match="bpe.model: not a BPE model"):
        split_tokens(tmp_path / "bpe.model")


def test_empty_hypothesis_is_all_deletions_and_empty_reference_all_insertions():
    total, _ = score({"a": "X Y", "b": ""}, {"a": "", "b": "Z"}, split_words)
    assert (total.units, total.deletions, total.insertions, total.wrong_sentences) == (2, 2, 1, 2)


def test_ids_must_match(files):
    reference, hypothesis = files
    write_table(hypothesis, {"u1": "GO", "u2": "STOP"})
    with pytest.raises(UserError, match="hyp: 1 ids of .*ref are missing: u3"):
        read_texts(reference, hypothesis)
    write_table(hypothesis, {**HYPOTHESES, "u9": "STOP"})
    with pytest.raises(UserError, match="hyp: 1 ids are not in .*ref: u9"):
        read_texts(reference, hypothesis)
    write_table(reference, dict.fromkeys(HYPOTHESES, ""))
    write_table(hypothesis, HYPOTHESES)
    with pytest.raises(UserError, match="ref: no words to score against"):
        read_texts(reference, hypothesis)


def test_score_command(files, tmp_path, capsys):
    assert command.main(["score", *map(str, files), "--alignment", str(tmp_path / "result.txt")]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|"
    assert output[2].startswith("|WER|3|6|66.7|") and output[3].startswith("|CER|3|24|")
    assert "id: u3" in (tmp_path / "result.txt").read_text()
    reference = files[0].read_text()
    assert command.main(["score", *map(str, files), "--alignment", str(files[0])]) == 1
    assert "would replace a file of texts" in capsys.readouterr().err and files[0].read_text() == reference
    assert command.main(["score", str(files[0]), str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "nowhere").exists()


def test_stage_13_writes_a_result_file_for_each_kind_and_names_what_is_missing(files, tmp_path, capsys):
    write_table(tmp_path / "dump" / "test" / "text", REFERENCES)
    write_table(tmp_path / "decode" / "test" / "text", HYPOTHESES)
    tables = score_decoding(tmp_path / "dump", tmp_path / "decode", ["test"], None)
    assert "### WER" in tables and "|decode/test|3|6|" in tables and "TER" not in tables
    for kind in ("wer", "cer"):
        result = (tmp_path / "decode" / "test" / f"score_{kind}" / "result.txt").read_text()
        assert "|test|3|" in result and "id: u1" in result and "2 of 3 sentences wrong" in result
    write_table(tmp_path / "dump" / "blind" / "text", dict.fromkeys(REFERENCES, ""))
    write_table(tmp_path / "decode" / "blind" / "text", HYPOTHESES)
    capsys.readouterr()
    assert score_decoding(tmp_path / "dump", tmp_path / "decode", ["blind", "test"], None) == tables
    assert "dump/blind/text: no transcripts, so blind is not scored" in capsys.readouterr().out
    with pytest.raises(UserError, match="blind/text: no words to score against"):
        score_decoding(tmp_path / "dump", tmp_path / "decode", ["blind"], None)
    write_table(tmp_path / "dump" / "valid" / "text", REFERENCES)
    with pytest.raises(UserError, match="valid/text: no such file; run stage 12"):
        score_decoding(tmp_path / "dump", tmp_path / "decode", ["test", "valid"], None)
    result = run_module(
        "espnet_lmu.scoring.summary", "--data_feats", tmp_path / "dump", "--decode_dir", tmp_path / "decode", "test"
    )
    assert result.returncode == 0 and tables in (tmp_path / "decode" / "RESULTS.md").read_text()
