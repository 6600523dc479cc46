"""``report.html``: the results of an experiment on one page that a browser opens without network or server."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.data.files import atomic_open
from espnet_lmu.data.segments import Excerpt, read_excerpt
from espnet_lmu.errors import UserError
from espnet_lmu.report.curves import learning_curves
from espnet_lmu.report.experiment import TITLES, Decoding, Experiment, Rate
from espnet_lmu.report.results import commands, facts, hours
from espnet_lmu.scoring.error_rate import Column, ErrorRate, count_marks

_SHOWN_UTTERANCES = 12  # of each test set
_SHOWN_CONFUSIONS = 15  # of each kind
_LONGEST_PLAYED = 60.0  # seconds: what is longer would make the page heavy


@dataclass
class Utterance:
    """A badly recognized utterance; its audio as a data URI, or why there is none."""

    key: str
    speaker: str | None
    total: ErrorRate
    columns: list[Column]
    audio: str | None
    silent: str


@dataclass
class SetDetails:
    """What the page shows of a test set."""

    name: str
    rate: Rate
    speakers: list[tuple[str, ErrorRate]]
    worst: list[Utterance]
    substitutions: list[tuple[tuple[str, str], int]]
    deletions: list[tuple[str, int]]
    insertions: list[tuple[str, int]]


def write_report(experiment: Experiment, decoding: Decoding) -> Path:
    """Write ``report.html`` into the experiment: all decodings in one table, and one of them in detail.

    Returns:
        the file.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    path = experiment.directory / "report.html"
    page = environment.get_template("page.html").render(
        experiment=experiment,
        decoding=decoding,
        kinds=[kind for kind in TITLES if kind in decoding.rates],
        titles=TITLES,
        title=TITLES[decoding.kind],
        units={"wer": "words", "cer": "characters"}[decoding.kind],
        sets=[_details(experiment, decoding, name) for name in decoding.sets],
        scale=_scale([rate for own in experiment.decodings for rate in own.rates[decoding.kind].values()]),
        curves=learning_curves(experiment.history.epochs) if experiment.history else [],
        facts=facts(experiment),
        commands=commands(experiment, experiment.decodings),
        hours=hours,
    )
    with atomic_open(path) as stream:
        stream.write(page)
    return path


def _scale(rates: list[Rate]) -> float:
    """Upper end of an axis, in percent, on which all rates and their intervals have a place."""
    return max(1.0, 1.05 * max(rate.interval[1] for rate in rates))


def _details(experiment: Experiment, decoding: Decoding, name: str) -> SetDetails:
    alignments = decoding.alignments(name, decoding.kind)
    speakers = experiment.speakers(name)
    pairs: dict[str, Counter] = {mark: Counter() for mark in "SDI"}
    for columns in alignments.values():
        for column in columns:
            if column.mark != "C":
                pairs[column.mark][column.reference, column.hypothesis] += 1
    return SetDetails(
        name,
        decoding.rates[decoding.kind][name],
        _by_speaker(alignments, speakers),
        _worst(alignments, speakers, experiment.audio(name)),
        pairs["S"].most_common(_SHOWN_CONFUSIONS),
        [(reference, count) for (reference, _), count in pairs["D"].most_common(_SHOWN_CONFUSIONS)],
        [(hypothesis, count) for (_, hypothesis), count in pairs["I"].most_common(_SHOWN_CONFUSIONS)],
    )


def _by_speaker(alignments: dict[str, list[Column]], speakers: dict[str, str]) -> list[tuple[str, ErrorRate]]:
    """Speakers and their error rates, the highest first; empty where every utterance counts as a speaker."""
    own: dict[str, dict[str, list[Column]]] = {}
    for key, columns in alignments.items():
        if key in speakers:
            own.setdefault(speakers[key], {})[key] = columns
    if len(own) == len(alignments):
        return []
    totals = {speaker: ErrorRate.of(count_marks(columns)) for speaker, columns in own.items()}
    return sorted(totals.items(), key=lambda item: (-_rate(item[1]), item[0]))


def _rate(total: ErrorRate) -> float:
    """Errors in percent, also where there are no words to make them in."""
    return 100 * total.errors / max(total.units, 1)


def _worst(alignments: dict[str, list[Column]], speakers: dict[str, str], audio: dict[str, Excerpt]) -> list[Utterance]:
    """The utterances with the most errors, those with fewer words first where they are equal."""
    marks = count_marks(alignments)
    errors, units = marks[:, 1:].sum(axis=1), marks[:, :3].sum(axis=1)
    keys, found = list(alignments), []
    for i in np.lexsort((units, -errors))[:_SHOWN_UTTERANCES]:
        if errors[i] == 0:
            break
        key = keys[i]
        sound, silent = _embed(audio[key]) if key in audio else (None, "audio not found")
        total = ErrorRate.of(marks[i : i + 1])
        found.append(Utterance(key, speakers.get(key), total, alignments[key], sound, silent))
    return found


def _embed(excerpt: Excerpt) -> tuple[str | None, str]:
    """The audio as a data URI of FLAC, which every browser plays (of SPHERE, say, none does), or why there is none."""
    import soundfile

    try:
        samples, rate = read_excerpt(excerpt)
    except UserError as error:
        return None, str(error)
    if len(samples) > _LONGEST_PLAYED * rate:
        return None, f"{len(samples) / rate:.0f} s of audio, too long for this page"
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(samples, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(stream.getvalue()).decode("ascii"), ""
