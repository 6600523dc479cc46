"""Transcripts as files: plain text, JSON, subtitles (SubRip, WebVTT) and NIST's CTM."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import zip_longest

from espnet_lmu.recognition.transcript import Transcript, Word

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "ctm": ".ctm"}

_LINE = 42  # characters of a line of subtitles, of which there are two at once
_LONGEST = 6.0  # seconds a subtitle stays at most
_PAUSE = 1.0  # seconds without words, after which a new subtitle begins
_SHORTEST = 1.0  # seconds a subtitle stays at least, if the next one leaves them


def _spelled(transcript: Transcript) -> list[tuple[Word, str]]:
    """Each word with its text, and with what is before it in the transcript: a space, in scripts that have them."""
    spelled, place = [], 0
    for word in transcript.words:
        start = transcript.text.find(word.text, place)
        between = " " if start < 0 else transcript.text[place:start]
        place = max(place, start + len(word.text))
        spelled.append((word, between + word.text))
    return spelled


def _join(texts: list[str]) -> str:
    return "".join(texts).strip()


def _subtitles(transcript: Transcript) -> list[tuple[float, float, str]]:
    """(start, end, text) of what is shown at once."""
    groups: list[list[tuple[Word, str]]] = []
    for word, text in _spelled(transcript):
        group = groups[-1] if groups else []
        if (
            not group
            or word.start - group[-1][0].end > _PAUSE
            or word.end - group[0][0].start > _LONGEST
            or len(_join([*(before for _, before in group), text])) > 2 * _LINE
        ):
            groups.append([(word, text)])
        else:
            group.append((word, text))
    subtitles = []
    for group, following in zip_longest(groups, groups[1:]):
        start = group[0][0].start
        end = min(max(group[-1][0].end, start + _SHORTEST), transcript.duration)
        if following:
            end = min(end, following[0][0].start)
        subtitles.append((start, end, _two_lines([text for _, text in group])))
    return subtitles


def _two_lines(texts: list[str]) -> str:
    text = _join(texts)
    if len(text) <= _LINE:
        return text
    cuts = [(_join(texts[:i]), _join(texts[i:])) for i in range(1, len(texts))]
    return "\n".join(min(cuts, key=lambda lines: max(map(len, lines)), default=(text,)))


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _json(name: str, transcript: Transcript) -> str:
    words = [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(word).items()}
        for word in transcript.words
    ]
    content = {"id": name, "duration": round(transcript.duration, 3), "text": transcript.text, "words": words}
    return json.dumps(content, ensure_ascii=False) + "\n"


def _srt(name: str, transcript: Transcript) -> str:
    cues = enumerate(_subtitles(transcript), 1)
    return "".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n" for number, (start, end, text) in cues
    )


def _vtt(name: str, transcript: Transcript) -> str:
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text.translate(escape)}\n\n"
        for start, end, text in _subtitles(transcript)
    )


def _ctm(name: str, transcript: Transcript) -> str:
    def field(text: str) -> str:
        return "_".join(text.split())

    return "".join(
        f"{field(name)} 1 {word.start:.3f} {word.end - word.start:.3f} {field(word.text)} {word.confidence:.3f}\n"
        for word in transcript.words
    )


def render(name: str, transcript: Transcript, form: str) -> str:
    """Content of a file in one of the formats of `SUFFIXES`; JSON and CTM have the recording's name in it."""
    if form == "text":
        return transcript.text + "\n"
    return {"json": _json, "srt": _srt, "vtt": _vtt, "ctm": _ctm}[form](name, transcript)
