"""What was said and when: tokens with times from CTC posteriors, windows joined, words.

T encoder frames, V tokens; token 0 is the blank. Times are in seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from espnet_lmu.decoding.greedy import BLANK

_SAME_TIME = 0.3  # seconds between the places at which two windows may see one token


class Token(NamedTuple):
    """A recognized token: its id, when it starts and ends, and its mean posterior over those frames."""

    id: int
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Word:
    """A recognized word; its confidence is the mean of its tokens'."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What was recognized in a recording of `duration` seconds."""

    text: str
    words: list[Word]
    duration: float


def greedy_tokens(log_probs, frame_shift: float, ignored: int, start: float = 0.0) -> list[Token]:
    """Tokens of the most probable CTC alignment, with the frames that it gives them.

    Of all alignments this is the most probable one, so also of those that spell its own tokens: it is what forced
    alignment (``torchaudio.functional.forced_align``) of the tokens would find.

    Args:
        log_probs: (T, V) log posteriors.
        frame_shift: seconds from one frame to the next.
        ignored: id of a token that is not part of texts (ESPnet's <sos/eos>).
        start: time of the first frame.
    """
    if len(log_probs) == 0:
        return []
    best, ids = (values.cpu().numpy() for values in log_probs.max(dim=-1))
    first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    last = np.append(first[1:], len(ids))
    confidences = np.add.reduceat(np.exp(best), first) / (last - first)
    return [
        Token(int(ids[a]), start + float(a) * frame_shift, start + float(b) * frame_shift, float(confidence))
        for a, b, confidence in zip(first, last, confidences, strict=True)
        if ids[a] not in (BLANK, ignored)
    ]


def append_window(tokens: list[Token], window: list[Token], begin: float, end: float) -> None:
    """Continue the tokens of a recording with those of its next window, which overlaps them from `begin` to `end`.

    Near its border a window lacks context, so the cut is made as far from both borders as possible: after the token
    nearest to the middle on which both agree, best one with an agreeing neighbour. Where they agree on none, it is
    the middle.
    """
    middle = (begin + end) / 2
    pairs: list[tuple[int, int]] = []
    for i in range(bisect_left(tokens, begin - _SAME_TIME, key=attrgetter("start")), len(tokens)):
        for j in range(pairs[-1][1] + 1 if pairs else 0, len(window)):
            if window[j].start > tokens[i].start + _SAME_TIME:
                break
            if window[j].id == tokens[i].id and window[j].start >= tokens[i].start - _SAME_TIME:
                pairs.append((i, j))
                break
    if pairs:
        known = set(pairs)
        sure = [(i, j) for i, j in pairs if (i - 1, j - 1) in known or (i + 1, j + 1) in known]
        i, j = min(sure or pairs, key=lambda pair: abs(tokens[pair[0]].start - middle))
        keep, skip = i + 1, j + 1
    else:
        keep, skip = (bisect_left(sequence, middle, key=attrgetter("start")) for sequence in (tokens, window))
    tokens[keep:] = window[skip:]


def group_words(tokens: list[Token], token_list: list[str], spell: Callable[[list[int]], str]) -> list[Word]:
    """Words of a token sequence: from one word boundary to the next, or each token where the language writes none.

    Args:
        tokens: the sequence.
        token_list: the model's tokens; "▁" opens the first piece of a word, "<space>" stands between words.
        spell: text of token ids.
    """
    pieces = any(token.startswith("▁") for token in token_list)
    spaces = "<space>" in token_list
    groups: list[list[Token]] = []
    opened = False  # whether the next token belongs to the last group
    for token in tokens:
        symbol = token_list[token.id]
        if symbol == "<space>":
            opened = False
            continue
        if opened and not (pieces and symbol.startswith("▁")):
            groups[-1].append(token)
        else:
            groups.append([token])
        opened = pieces or spaces
    words = []
    for group in groups:
        text = spell([token.id for token in group])
        if text:
            confidence = sum(token.confidence for token in group) / len(group)
            words.append(Word(text, group[0].start, group[-1].end, confidence))
    return words
