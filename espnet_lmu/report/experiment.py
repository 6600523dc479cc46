"""What an experiment and its decodings left in their directories: settings, data, training, error rates."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np

from espnet_lmu.data.audio import audio_length
from espnet_lmu.data.files import read_yaml
from espnet_lmu.data.format import FRAME_SHIFT_MS
from espnet_lmu.data.kaldi_dir import read_table
from espnet_lmu.data.segments import Excerpt, parse_segment
from espnet_lmu.errors import UserError
from espnet_lmu.report.record import Start, read_starts
from espnet_lmu.scoring.bootstrap import bootstrap_interval
from espnet_lmu.scoring.error_rate import Column, ErrorRate, count_errors, read_alignments, read_marks
from espnet_lmu.training.history import History, read_history

TITLES = {"wer": "WER", "cer": "CER", "ter": "TER"}


@dataclass
class Rate:
    """Error rate of a test set in percent, its counts, and the 95 % interval by bootstrap over the utterances."""

    total: ErrorRate
    interval: tuple[float, float]

    @classmethod
    def of(cls, marks: np.ndarray) -> Rate:
        """The rate of N utterances, whose correct units, substitutions, deletions and insertions are `marks` (N, 4)."""
        return cls(ErrorRate.of(marks), bootstrap_interval(count_errors(marks)))


class Decoding:
    """A decoding directory that stage 13 has scored."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.name = directory.name
        self.sets = sorted(path.parent.parent.name for path in directory.glob("*/score_wer/result.txt"))

    @cached_property
    def rates(self) -> dict[str, dict[str, Rate]]:
        """By kind (wer, cer and, where scored, ter) and test set."""
        found: dict[str, dict[str, Rate]] = {}
        for kind in TITLES:
            files = {name: self._result(name, kind) for name in self.sets}
            if own := {name: Rate.of(read_marks(path)) for name, path in files.items() if path.exists()}:
                found[kind] = own
        return found

    @cached_property
    def kind(self) -> str:
        """The rate that counts: wer, or cer for scripts that do not part words by spaces, as Chinese."""
        columns = [column for own in self.alignments(self.sets[0], "wer").values() for column in own]
        widths = Counter(east_asian_width(character) in "WF" for column in columns for character in column.reference)
        return "cer" if widths[True] > widths[False] and "cer" in self.rates else "wer"

    def alignments(self, name: str, kind: str) -> dict[str, list[Column]]:
        """The alignments of a test set, by utterance."""
        return read_alignments(self._result(name, kind))

    @property
    def start(self) -> Start | None:
        """How stage 12 was started last."""
        return next(reversed(read_starts(self.directory / "decode_starts.json")), None)

    def _result(self, name: str, kind: str) -> Path:
        return self.directory / name / f"score_{kind}" / "result.txt"


@dataclass
class DataSet:
    """Size of a formatted data directory; copies at other speeds count as audio, and not as utterances or speakers."""

    name: str
    hours: float | None
    utterances: int
    speakers: int
    speeds: int = 1


class Experiment:
    """An experiment directory; what is not there is None or empty.

    Args:
        directory: experiment directory, with decoding directories in it.
        data_feats: formatted data (``dump/raw``, ``dump/fbank``); by default where the training took its data.

    Raises:
        UserError: no such directory, no decoding that stage 13 has scored, no data in `data_feats`, or a damaged file.
    """

    def __init__(self, directory: Path, data_feats: Path | None = None):
        if not directory.is_dir():
            raise UserError(f"{directory}: no such experiment directory")
        self.directory = directory
        self.name = directory.resolve().name
        self.config = read_yaml(directory / "config.yaml") if (directory / "config.yaml").exists() else {}
        self.recipe = _recipe_directory(directory, self.config)
        self.data_feats = data_feats or self._data_of("valid").parent
        found = [Decoding(path) for path in sorted(directory.iterdir()) if path.is_dir()]
        self.decodings = [decoding for decoding in found if decoding.sets]
        if not self.decodings:
            raise UserError(f"{directory}: no decoding with scores; run stages 12 and 13 first")
        if data_feats is not None and not any(
            (data_feats / name).is_dir() for decoding in self.decodings for name in decoding.sets
        ):
            sets = ", ".join(sorted({name for decoding in self.decodings for name in decoding.sets}))
            raise UserError(f"--data_feats {data_feats}: none of the test sets is there: {sets}")
        self.starts = read_starts(directory / "train_starts.json")

    @cached_property
    def history(self) -> History | None:
        """Epochs and parameters; None without the state of the training, as in a model got from elsewhere."""
        return read_history(self.directory) if (self.directory / "checkpoint.pth").exists() else None

    def decoding(self, name: str | None) -> Decoding:
        """The decoding of that name; without one, the one scored last."""
        if name is None:
            return max(self.decodings, key=lambda decoding: max(map(_changed, decoding.directory.glob("*/score_wer"))))
        for decoding in self.decodings:
            if decoding.name == name:
                return decoding
        names = ", ".join(decoding.name for decoding in self.decodings)
        raise UserError(f"{self.directory}: no scored decoding {name}; there are: {names}")

    @cached_property
    def data(self) -> list[tuple[str, DataSet]]:
        """Purpose and size of the sets of the training and of all decodings, as far as their data is there."""
        tests = {name: self.data_feats / name for decoding in self.decodings for name in decoding.sets}
        paths = [("training", self._data_of("train")), ("validation", self._data_of("valid"))]
        known = {path.resolve() for _, path in paths}
        paths += [("test", path) for path in tests.values() if path.resolve() not in known]
        return [(purpose, _measure(path, self.recipe)) for purpose, path in paths if (path / "utt2spk").exists()]

    def speakers(self, name: str) -> dict[str, str]:
        """Speaker of each utterance of a test set; empty if the data is gone."""
        path = self.data_feats / name / "utt2spk"
        return read_table(path) if path.exists() else {}

    def audio(self, name: str) -> dict[str, Excerpt]:
        """The recordings of a test set by utterance: as formatted, else those that the features were computed of."""
        formatted, original = self.data_feats / name, self.recipe / "data" / name
        directory = formatted if (formatted / "wav.scp").exists() else original
        if not (directory / "wav.scp").exists():
            return {}
        recordings = {key: str(self.recipe / path) for key, path in read_table(directory / "wav.scp").items()}
        if not (directory / "segments").exists():
            return {key: Excerpt(path) for key, path in recordings.items()}
        parts = {key: parse_segment(value) for key, value in read_table(directory / "segments").items()}
        return {
            key: Excerpt(recordings.get(recording, recording), *times) for key, (recording, *times) in parts.items()
        }

    def _data_of(self, part: str) -> Path:
        entries = self.config.get(f"{part}_data_path_and_name_and_type") or [["dump/unknown/text"]]
        return self.recipe / Path(entries[0][0]).parent


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _recipe_directory(directory: Path, config: dict) -> Path:
    """Where the paths of the configuration start: the directory in which the training ran, as far as it is there."""
    place, output = directory.resolve(), Path(config.get("output_dir") or ".")
    steps = len(output.parts)
    if steps and place.parts[-steps:] == output.parts:
        return Path(*place.parts[:-steps])
    return Path()


def _measure(directory: Path, recipe: Path) -> DataSet:
    speakers = read_table(directory / "utt2spk")
    originals = {}
    perturbed = recipe / "data" / directory.name / "utt2speed"
    speeds = read_table(perturbed) if perturbed.exists() else None
    for key, speaker in speakers.items():
        # Stage 2 marks copies at other speeds so; a speaker may have such a name too.
        original, voice = (re.sub(r"^sp[\d.]+-", "", name) for name in (key, speaker))
        copied = key in speeds if speeds is not None else original in speakers
        originals[original if copied else key] = voice if copied else speaker
    hours = None
    if (directory / "feats_shape").exists():
        frames = [int(shape.split(",")[0]) for shape in read_table(directory / "feats_shape").values()]
        hours = sum(frames) * FRAME_SHIFT_MS / 3.6e6
    elif (directory / "utt2num_samples").exists():
        samples = read_table(directory / "utt2num_samples")
        path = recipe / next(iter(read_table(directory / "wav.scp").values()))
        if path.exists():  # it says at which rate
            hours = sum(map(int, samples.values())) / audio_length(path)[1] / 3600
    copies = round(len(speakers) / len(originals))
    return DataSet(directory.name, hours, len(originals), len(set(originals.values())), copies)
