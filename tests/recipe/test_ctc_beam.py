"""Prefix beam search: its scores, its language models and lexicons, and the choice of their weights."""

import math

import numpy as np
import pytest
import torch

from espnet_lmu.decoding.ctc_beam import BeamOptions, CTCBeamSearch
from espnet_lmu.decoding.greedy import best_path
from espnet_lmu.decoding.tuning import Tuning, write_tuning
from espnet_lmu.errors import UserError
from espnet_lmu.lm.ngram import speller, write_lexicon
from espnet_lmu.scoring.error_rate import score, split_words

PIECES = ["<blank>", "<unk>", "▁A", "▁B", "C", "D", "<sos/eos>"]
LETTERS = ["<blank>", "<unk>", "<space>", "A", "B", "C", "<sos/eos>"]
WIDE = BeamOptions(beam_size=500, beam_size_token=None, beam_threshold=1000.0)


@pytest.fixture(autouse=True)
def _needs_flashlight():
    pytest.importorskip("flashlight.lib.text", reason="the prefix beam search needs flashlight-text")


def frames(tokens: list[str], *path: str) -> torch.Tensor:
    """Log posteriors (T, V) that are sure of `path`."""
    logits = torch.zeros(len(path), len(tokens))
    for row, token in zip(logits, path, strict=True):
        row[tokens.index(token)] = 10.0
    return logits.log_softmax(-1)


def write_bigrams(path, sentences: list[list[str]], vocabulary: list[str]):
    """An ARPA file of the bigrams of `sentences`, each bigram counted once more than it occurs."""
    vocabulary = ["<s>", "</s>", "<unk>", *vocabulary]
    counts = {(a, b): 1 for a in vocabulary for b in vocabulary if a != "</s>" and b != "<s>"}
    for sentence in sentences:
        for pair in zip(["<s>", *sentence], [*sentence, "</s>"], strict=True):
            counts[pair] += 1
    totals = {a: sum(count for (first, _), count in counts.items() if first == a) for a in vocabulary}
    lines = ["\\data\\", f"ngram 1={len(vocabulary)}", f"ngram 2={len(counts)}", "", "\\1-grams:"]
    lines += [f"{-99 if word == '<s>' else -2}\t{word}\t0" for word in vocabulary]
    lines += ["", "\\2-grams:"]
    lines += [f"{math.log10(count / totals[a]):.6f}\t{a} {b}" for (a, b), count in counts.items()]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path


def test_score_is_the_probability_of_the_tokens_and_never_worse_than_greedy():
    torch.manual_seed(0)
    search = CTCBeamSearch(PIECES, BeamOptions(beam_size=2000, beam_threshold=1000.0))
    for length in (1, 2, 7):
        log_probs = (2 * torch.randn(length, len(PIECES) - 1)).log_softmax(-1)
        # <sos/eos> has no place in a transcript.
        log_probs = torch.cat([log_probs, torch.full((length, 1), -100.0)], dim=1)
        ids, words, total = max(search(log_probs), key=lambda found: found[2])
        expected = -torch.nn.functional.ctc_loss(
            log_probs[:, None], torch.tensor([ids]), [length], [len(ids)], reduction="sum"
        )
        # A beam loses a little of the sum.
        assert expected.item() - 0.01 < total < expected.item() + 1e-4 and words == []
        assert total >= best_path(log_probs[None], torch.tensor([length]))[0][1] - 1e-4


def test_language_model_of_tokens_decides_between_equals(tmp_path):
    log_probs = frames(PIECES, "▁A", "<blank>", "C").exp()
    log_probs[2, [PIECES.index("C"), PIECES.index("D")]] = log_probs[2].max() / 2
    log_probs = log_probs.log()
    for wanted in "CD":
        lm = write_bigrams(tmp_path / f"{wanted}.arpa", [["▁A", wanted]] * 20, PIECES[2:6])
        ids, _, total = max(CTCBeamSearch(PIECES, WIDE, lm, lm_weight=1.0)(log_probs), key=lambda found: found[2])
        assert [PIECES[i] for i in ids] == ["▁A", wanted]
        # log10 of (20 + 1) / (20 + the 6 other tokens and </s>), twice: <s> to A, A to C; C to </s>.
        acoustic = max(CTCBeamSearch(PIECES, WIDE)(log_probs), key=lambda found: found[2])[2]
        assert total - acoustic == pytest.approx(3 * math.log10(21 / 26), abs=1e-3)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (["▁A", "C", "▁B"], "AC B"),
        (["▁A", "C", "<blank>", "▁B"], "AC B"),
        (["▁A", "▁A", "C", "C", "C", "<blank>", "▁B", "▁B"], "AC B"),
        (["▁B", "<blank>", "▁B", "▁B", "<blank>", "<blank>", "▁B"], "B B B"),
        (["<blank>", "▁A", "<blank>", "C", "C"], "AC"),
        (["▁B", "D"], "BD"),
    ],
)
def test_words_of_pieces_are_found_however_long_their_last_piece(tmp_path, path, words):
    spellings = {"AC": ["▁A", "C"], "B": ["▁B"], "BD": ["▁B", "D"]}
    write_lexicon(tmp_path / "lexicon.txt", spellings, spellings.__getitem__, PIECES)
    lm = write_bigrams(tmp_path / "lm.arpa", [], list(spellings))
    search = CTCBeamSearch(PIECES, WIDE, lm, tmp_path / "lexicon.txt")
    assert " ".join(search(frames(PIECES, *path))[0][1]) == words


def test_words_of_characters_and_only_those_of_the_lexicon(tmp_path):
    write_lexicon(tmp_path / "lexicon.txt", ["AA", "AB"], speller(LETTERS, None), LETTERS)
    lm = write_bigrams(tmp_path / "lm.arpa", [], ["AA", "AB"])
    search = CTCBeamSearch(LETTERS, WIDE, lm, tmp_path / "lexicon.txt")
    path = ["A", "<blank>", "A", "<space>", "<space>", "A", "A", "B", "B"]
    assert search(frames(LETTERS, *path))[0][1] == ["AA", "AB"]
    assert search(frames(LETTERS, "A", "C"))[0][1] == ["AB"]


def test_lexicon_of_other_tokens_is_named(tmp_path):
    write_lexicon(tmp_path / "lexicon.txt", ["AA"], speller(LETTERS, None), LETTERS)
    lm = write_bigrams(tmp_path / "lm.arpa", [], ["AA"])
    with pytest.raises(UserError, match=r"lexicon.txt: .*'A'.* run stage 9 again"):
        CTCBeamSearch(PIECES, WIDE, lm, tmp_path / "lexicon.txt")


def test_language_model_lowers_the_word_error_rate_of_a_noisy_model(tmp_path):
    random = np.random.default_rng(0)
    spellings = {"AC": ["▁A", "C"], "AD": ["▁A", "D"], "B": ["▁B"], "BD": ["▁B", "D"]}
    sentences = [["AC", "B", "AC", "B"], ["BD", "AD", "AD", "BD"]]
    write_lexicon(tmp_path / "lexicon.txt", spellings, spellings.__getitem__, PIECES)
    word_lm = write_bigrams(tmp_path / "word.arpa", sentences * 20, list(spellings))
    pieces = [[piece for word in sentence for piece in spellings[word]] for sentence in sentences]
    token_lm = write_bigrams(tmp_path / "token.arpa", pieces * 20, PIECES[2:6])
    searches = {
        "none": CTCBeamSearch(PIECES, BeamOptions()),
        "token": CTCBeamSearch(PIECES, BeamOptions(), token_lm, lm_weight=2.0),
        "word": CTCBeamSearch(PIECES, BeamOptions(), word_lm, tmp_path / "lexicon.txt", lm_weight=2.0),
    }
    references, texts = {}, {name: {} for name in searches}
    for i in range(40):
        path = [piece for piece in pieces[i % 2] for piece in (piece, "<blank>")]
        noise = 6.0 * torch.from_numpy(random.standard_normal((len(path), len(PIECES))))
        log_probs = (frames(PIECES, *path) + noise).float().log_softmax(-1)
        references[f"{i:02d}"] = " ".join(sentences[i % 2])
        for name, search in searches.items():
            ids, words, _ = max(search(log_probs), key=lambda found: found[2])
            spelled = words or "".join(PIECES[j] for j in ids).replace("▁", " ").split()
            texts[name][f"{i:02d}"] = " ".join(spelled)
    rates = {name: score(references, text, split_words)[0].rate for name, text in texts.items()}
    assert rates["none"] > 20 and rates["token"] < 0.8 * rates["none"] and rates["word"] < 0.7 * rates["none"], rates


def test_best_weights_of_a_grid_and_their_curve(tmp_path):
    rates = np.array([[9.0, 8.0], [5.0, 7.0], [6.0, 6.0]]).ravel().tolist()
    tuning = Tuning.of([0.0, 0.5, 1.0], [0.0, 1.0], rates)
    assert tuning.best == (0.5, 0.0) and tuning.at_the_end() == []
    assert Tuning.of([0.0, 0.5, 1.0], [0.0, 1.0], rates[::-1]).at_the_end() == ["insertion_score"]
    assert Tuning.of([0.5, 1.0], [0.0], [3.0, 2.0]).at_the_end() == ["lm_weight"]
    # Of equal ones, the middle.
    assert Tuning.of([0.0, 1.0, 2.0, 3.0], [0.0], [3.0, 2.0, 2.0, 2.0]).best == (2.0, 0.0)
    write_tuning(tmp_path, "dev", tuning)
    table = (tmp_path / "tuning.md").read_text()
    assert "best: lm_weight 0.5, insertion_score 0\n" in table and "|0.5|**5.00**|7.00|" in table
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
