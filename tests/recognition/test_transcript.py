"""Tokens with their times, the seams of windows, words."""

import random

import numpy as np
import pytest
import torch
from torchaudio.functional import forced_align, merge_tokens

from espnet_lmu.recognition.transcript import Token, append_window, greedy_tokens, group_words


@pytest.mark.parametrize("seed", range(5))
def test_tokens_of_the_best_path_are_those_of_forced_alignment(seed):
    torch.manual_seed(seed)
    log_probs = (3 * torch.randn(60, 7)).log_softmax(-1)
    tokens = greedy_tokens(log_probs, frame_shift=0.04, ignored=-1, start=10.0)
    targets = torch.tensor([[token.id for token in tokens]])
    alignment, scores = forced_align(log_probs[None], targets)
    spans = merge_tokens(alignment[0], scores[0].exp())
    assert [token.id for token in tokens] == [span.token for span in spans]
    for token, span in zip(tokens, spans, strict=True):
        assert token.start == pytest.approx(10.0 + 0.04 * span.start)
        assert token.end == pytest.approx(10.0 + 0.04 * span.end)
        assert token.confidence == pytest.approx(span.score, abs=1e-5)


def test_blank_and_ignored_tokens_are_no_tokens():
    path = torch.tensor([0, 2, 2, 0, 2, 3, 3, 1])
    log_probs = torch.nn.functional.one_hot(path, 4).float().log_softmax(-1)
    assert [(t.id, t.start, t.end) for t in greedy_tokens(log_probs, 1.0, ignored=3)] == [
        (2, 1, 3),
        (2, 4, 5),
        (1, 7, 8),
    ]
    assert greedy_tokens(log_probs[:0], 1.0, ignored=3) == []


def _speech(rng: random.Random, seconds: float, vocabulary: int) -> list[Token]:
    tokens, time = [], 0.0
    while time < seconds:
        time += rng.choice([0.12, 0.2, 0.4, 0.4, 3.0])
        tokens.append(Token(rng.randrange(vocabulary), time, time + 0.08, 1.0))
    return tokens


def _window(rng: random.Random, tokens: list[Token], begin: float, end: float, vocabulary: int) -> list[Token]:
    """What a window hears: the truth, a little shifted, but within a second of its borders anything."""
    heard = []
    for token in tokens:
        if not begin <= token.start < end:
            continue
        shift = rng.choice([-0.04, 0.0, 0.04])
        token = token._replace(start=token.start + shift, end=token.end + shift)
        if min(token.start - begin, end - token.start) < 1.0:
            if rng.random() < 0.4:
                continue
            if rng.random() < 0.4:
                token = token._replace(id=rng.randrange(vocabulary))
        heard.append(token)
    return heard


@pytest.mark.parametrize("vocabulary", [2, 30])
def test_windows_that_err_near_their_borders_join_to_the_whole(vocabulary):
    rng = random.Random(vocabulary)
    for _ in range(100):
        truth = _speech(rng, 100.0, vocabulary)
        joined: list[Token] = []
        for begin in range(0, 100, 25):
            heard = _window(rng, truth, begin, begin + 30, vocabulary)
            if begin:
                append_window(joined, heard, begin, begin + 5)
            else:
                joined = heard
        # the recording's own borders have no seam
        sure = [token.id for token in truth if 1.2 < token.start < 98]
        text = " ".join(str(token.id) for token in joined)
        assert " ".join(map(str, sure)) in text
        assert len(joined) <= len(truth)


def test_windows_that_agree_on_nothing_are_cut_in_the_middle():
    left = [Token(1, time, time + 0.1, 1.0) for time in (0.0, 6.0, 9.0)]
    right = [Token(2, time, time + 0.1, 1.0) for time in (6.2, 8.0, 11.0)]
    append_window(left, right, 5.0, 10.0)
    assert [(token.id, token.start) for token in left] == [(1, 0.0), (1, 6.0), (2, 8.0), (2, 11.0)]


def test_times_do_not_go_back_at_a_seam():
    left = [Token(1, 10.0, 10.04, 1.0), Token(2, 10.04, 10.08, 1.0)]
    right = [Token(1, 9.96, 10.0, 1.0), Token(2, 10.0, 10.04, 1.0), Token(3, 10.9, 10.94, 1.0)]
    append_window(left, right, 8.0, 12.0)
    assert [(token.id, token.start, token.end) for token in left] == [
        (1, 10.0, 10.04),
        (2, 10.04, 10.04),
        (3, 10.9, 10.94),
    ]


def _words(symbols: list[str], token_list: list[str]) -> list[tuple[str, float, float]]:
    tokens = [Token(token_list.index(symbol), i, i + 0.5, 1 / (i + 1)) for i, symbol in enumerate(symbols)]
    words = group_words(tokens, token_list, lambda ids: "".join(token_list[i] for i in ids).replace("▁", ""))
    return [(word.text, word.start, word.end) for word in words]


def test_words_of_pieces_of_characters_and_of_a_language_without_spaces():
    pieces = ["<blank>", "▁TEN", "▁TW", "O", "▁"]
    assert _words(["▁TEN", "▁TW", "O"], pieces) == [("TEN", 0, 0.5), ("TWO", 1, 2.5)]
    assert _words(["O", "▁", "O"], pieces) == [("O", 0, 0.5), ("O", 1, 2.5)]
    assert _words(["▁TEN", "▁"], pieces) == [("TEN", 0, 0.5)]
    characters = ["<blank>", "A", "B", "<space>"]
    assert _words(["<space>", "A", "B", "<space>", "A"], characters) == [("AB", 1, 2.5), ("A", 4, 4.5)]
    assert _words(["今", "天"], ["<blank>", "今", "天"]) == [("今", 0, 0.5), ("天", 1, 1.5)]


def test_confidence_of_a_word_is_the_mean_of_its_tokens():
    tokens = [Token(1, 0, 1, 0.5), Token(2, 1, 2, 1.0)]
    (word,) = group_words(tokens, ["<blank>", "▁TW", "O"], lambda ids: "TWO")
    assert word.confidence == np.mean([0.5, 1.0])
