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


def _subtitles(words: list[Word]) -> list[tuple[float, float, str]]:
    """(start, end, text) of what is shown at once."""
    groups: list[list[Word]] = []
    for word in words:
        group = groups[-1] if groups else []
        if (
            not group
            or word.start - group[-1].end > _PAUSE
            or word.end - group[0].start > _LONGEST
            or len(" ".join(item.text for item in [*group, word])) > 2 * _LINE
        ):
            groups.append([word])
        else:
            group.append(word)
    subtitles = []
    for group, following in zip_longest(groups, groups[1:]):
        start = group[0].start
        end = max(group[-1].end, start + _SHORTEST)
        if following:
            end = min(end, following[0].start)
        subtitles.append((start, end, _two_lines([word.text for word in group])))
    return subtitles


def _two_lines(words: list[str]) -> str:
    text = " ".join(words)
    if len(text) <= _LINE:
        return text
    cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
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
    cues = enumerate(_subtitles(transcript.words), 1)
    return "".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n" for number, (start, end, text) in cues
    )


def _vtt(name: str, transcript: Transcript) -> str:
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text.translate(escape)}\n\n"
        for start, end, text in _subtitles(transcript.words)
    )


def _ctm(name: str, transcript: Transcript) -> str:
    recording = "_".join(name.split())
    return "".join(
        f"{recording} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.3f}\n"
        for word in transcript.words
    )


def render(name: str, transcript: Transcript, form: str) -> str:
    """Content of a file in one of the formats of `SUFFIXES`; JSON and CTM have the recording's name in it."""
    if form == "text":
        return transcript.text + "\n"
    return {"json": _json, "srt": _srt, "vtt": _vtt, "ctm": _ctm}[form](name, transcript)
