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
from espnet_lmu.tokens import SPACE

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


def _same_tokens(left: list[Token], right: list[Token]) -> list[tuple[int, int]]:
    """Indices of tokens that two windows both have, at about the same time: the best alignment of the two."""
    # gains[i][j]: of aligning left[i:] with right[j:]; a pair gains the more, the closer in time it is
    gains = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    pair_gains: dict[tuple[int, int], float] = {}
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            gains[i][j] = max(gains[i + 1][j], gains[i][j + 1])
            apart = abs(left[i].start - right[j].start)
            if left[i].id == right[j].id and apart < _SAME_TIME:
                pair_gains[i, j] = 1 - apart / _SAME_TIME + gains[i + 1][j + 1]
                gains[i][j] = max(gains[i][j], pair_gains[i, j])
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if pair_gains.get((i, j)) == gains[i][j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif gains[i + 1][j] == gains[i][j]:
            i += 1
        else:
            j += 1
    return pairs


def append_window(tokens: list[Token], window: list[Token], begin: float, end: float) -> None:
    """Continue the tokens of a recording with those of its next window, which overlaps them from `begin` to `end`.

    Near its border a window lacks context, so the cut is made in the middle of the overlap, or at the place next to
    it that has no token nearby which only one of the windows has.
    """
    start = attrgetter("start")
    first = bisect_left(tokens, begin - _SAME_TIME, key=start)
    left, right = tokens[first:], window[: bisect_left(window, end + _SAME_TIME, key=start)]
    pairs = _same_tokens(left, right)
    # What both have is on one side of the cut, even if they see it at different times.
    left_times, right_times = ([token.start for token in side] for side in (left, right))
    for i, j in pairs:
        left_times[i] = right_times[j] = (left_times[i] + right_times[j]) / 2
    disputed = [left_times[i] for i in set(range(len(left))) - {i for i, _ in pairs}]
    disputed += [right_times[j] for j in set(range(len(right))) - {j for _, j in pairs}]
    middle = (begin + end) / 2
    places = [middle, *(time - _SAME_TIME for time in disputed), *(time + _SAME_TIME for time in disputed)]
    clear = [
        place
        for place in places
        if begin <= place <= end and all(abs(place - time) >= _SAME_TIME - 1e-6 for time in disputed)
    ]
    cut = min(clear, key=lambda place: abs(place - middle), default=middle)
    keep = first + sum(time < cut for time in left_times)
    skip = sum(time < cut for time in right_times)
    # The two see the tokens at the cut some frames apart: these may not begin before what is kept has ended.
    over = tokens[keep - 1].end if keep else 0.0
    tokens[keep:] = [token._replace(start=max(token.start, over), end=max(token.end, over)) for token in window[skip:]]


def group_words(tokens: list[Token], token_list: list[str], spell: Callable[[list[int]], str]) -> list[Word]:
    """Words of a token sequence: from one word boundary to the next, or each token where the language writes none.

    Args:
        tokens: the sequence.
        token_list: the model's tokens; "▁" opens the first piece of a word, `SPACE` stands between words.
        spell: text of token ids.
    """
    pieces = any(token.startswith("▁") for token in token_list)
    spaces = SPACE in token_list
    groups: list[list[Token]] = []
    opened = False  # whether the next token belongs to the last group
    for token in tokens:
        symbol = token_list[token.id]
        if symbol == SPACE:
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
