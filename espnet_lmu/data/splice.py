"""Stage 2: further training utterances, spliced from parts of a speaker's own (a kind of Aligned Data Augmentation:
Lam, Ohta, Schamoni, Riezler, "On-the-Fly Aligned Data Augmentation for Sequence-to-Sequence ASR", Interspeech 2021).

Few hours of speech say few sequences of words, which a network learns by heart. A model that was trained on them tells
where the words are; cut in the pauses between words and put together in another order, the same audio says sequences
that nobody has said.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet_lmu.data.audio import resample
from espnet_lmu.data.files import command_line
from espnet_lmu.data.format import FRAME_SHIFT_MS, fbank
from espnet_lmu.data.kaldi_dir import excerpts, read_data_dir, write_data_dir
from espnet_lmu.data.segments import Excerpt, read_excerpt
from espnet_lmu.errors import UserError
from espnet_lmu.progress import progress

PAUSE = 0.08  # seconds; the closures of stops are shorter
QUIET = 0.3  # of the way from the 8th to the 95th percentile of an utterance's mean log-mel energies
_GROUP = 256  # utterances whose audio is in memory


class Part(NamedTuple):
    """What lies between two pauses of an utterance."""

    utterance: str
    start: float  # seconds from the utterance's start
    stop: float
    words: list[str]


def find_pauses(samples: np.ndarray, rate: int, gaps: list[tuple[float, float]]) -> list[float | None]:
    """The middle (seconds) of the longest quiet in each gap (from, to, in seconds), or None where there is no pause."""
    energy = fbank(samples, rate).mean(axis=1)
    low, high = np.percentile(energy, [8, 95])
    quiet = energy < low + QUIET * (high - low)
    shift = FRAME_SHIFT_MS / 1000
    pauses: list[float | None] = []
    for start, stop in gaps:
        longest, middle, run = 0, 0.0, 0
        for frame in range(round(start / shift), min(round(stop / shift), len(quiet))):
            run = run + 1 if quiet[frame] else 0
            if run > longest:
                longest, middle = run, (frame + 1 - run / 2) * shift
        pauses.append(middle if longest * shift >= PAUSE else None)
    return pauses


def cut(utterance: str, samples: np.ndarray, rate: int, words: list, frame_shift: float) -> list[Part]:
    """The parts of an utterance between its pauses.

    Args:
        words: `espnet_lmu.recognition.transcript.Word`, in order.
        frame_shift: seconds; a word's first token is somewhere in its first frame, its last in its last.
    """
    half = frame_shift / 2
    gaps = [(word.end - half, following.start + half) for word, following in zip(words, words[1:], strict=False)]
    parts, start, first = [], 0.0, 0
    for number, pause in enumerate([*find_pauses(samples, rate, gaps), len(samples) / rate], 1):
        if pause is not None:
            parts.append(Part(utterance, start, pause, [word.text for word in words[first:number]]))
            start, first = pause, number
    return parts


def _samples(part: Part, samples: np.ndarray, rate: int) -> np.ndarray:
    return samples[round(part.start * rate) : round(part.stop * rate)]


def cut_all(recognizer, audio: dict[str, Excerpt], texts: dict[str, str], nj: int) -> tuple[list[Part], str]:
    """Parts of all utterances, and what stands between words ("" in a language that writes nothing there).

    Of an utterance that the model does not read as it is transcribed there are none, and a part that it does not read
    so by itself is left out: either may be transcribed wrongly or cut through a word.
    """
    parts: list[Part] = []
    separator = " "
    names = sorted(audio)
    with progress(desc="utterances cut", total=len(names), unit="utt") as bar:
        for first in range(0, len(names), _GROUP):
            group = names[first : first + _GROUP]
            recordings = {name: read_excerpt(audio[name]) for name in group}
            candidates: list[Part] = []
            for name, transcript in zip(group, recognizer.transcribe_all(list(recordings.values()), nj), strict=True):
                if isinstance(transcript, UserError):
                    raise UserError(f"{audio[name].path}: {transcript}")
                if transcript.words and transcript.text == " ".join(texts[name].split()):
                    if " ".join(word.text for word in transcript.words) != transcript.text:
                        separator = ""
                    candidates += cut(name, *recordings[name], transcript.words, recognizer.frame_shift)
            pieces = [
                (_samples(part, *recordings[part.utterance]), recordings[part.utterance][1]) for part in candidates
            ]
            for part, transcript in zip(candidates, recognizer.transcribe_all(pieces, nj), strict=True):
                if not isinstance(transcript, UserError) and [word.text for word in transcript.words] == part.words:
                    parts.append(part)
            bar.update(len(group))
    return parts, separator


def plan(parts: list[Part], speakers: dict[str, str], lengths: list[int], copies: int, seed: int) -> list[list[Part]]:
    """Utterances to splice, each of parts of one speaker; every part is used `copies` times.

    Args:
        speakers: of each utterance.
        lengths: numbers of words, one of which each new utterance reaches (the last of a speaker may not).
    """
    choose = random.Random(seed)
    by_speaker: dict[str, list[Part]] = {}
    for part in parts:
        by_speaker.setdefault(speakers[part.utterance], []).append(part)
    plans: list[list[Part]] = []
    for own in by_speaker.values():
        missing = 0
        for _ in range(copies):
            for part in choose.sample(own, len(own)):
                if missing <= 0:
                    plans.append([])
                    missing = choose.choice(lengths)
                plans[-1].append(part)
                missing -= len(part.words)
    return plans


def splice(recognizer, source: Path, target: Path, copies: int, seed: int, nj: int) -> None:
    """Write data directory `target`: the utterances of `source`, and spliced ones that use every part `copies` times.

    Raises:
        UserError: `source` is no data directory, audio cannot be read, or the model reads nothing as it is transcribed.
    """
    import soundfile

    tables = read_data_dir(source)
    audio = excerpts(tables)
    parts, separator = cut_all(recognizer, audio, tables["text"], nj)
    if not parts:
        raise UserError(f"{source}: the model reads none of these utterances as transcribed; give one trained on them")
    used = {part.utterance for part in parts}
    print(f"{source}: {len(parts)} parts, of {len(used)} of {len(audio)} utterances")
    lengths = [len(text.split()) for text in tables["text"].values() if text.split()]
    plans = plan(parts, tables["utt2spk"], lengths, copies, seed)

    folder = target / "spliced"
    temporary = target / f".spliced.{os.getpid()}.tmp"
    for left in (folder, *target.glob(".spliced.*.tmp")):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    for number, chosen in enumerate(progress(plans, desc=f"{target}: spliced", unit="utt")):
        speaker = tables["utt2spk"][chosen[0].utterance]
        name = f"{speaker}-spliced{number:06d}"
        joined = []
        for part in chosen:
            samples, rate = read_excerpt(audio[part.utterance])
            joined.append(resample(_samples(part, samples, rate), rate, recognizer.rate))
        samples = np.concatenate(joined)
        file = f"{name.replace('/', '_')}.flac"
        soundfile.write(temporary / file, np.clip(samples, -1, 1), recognizer.rate, subtype="PCM_16")
        tables["wav.scp"][name] = str(folder / file)
        if "segments" in tables:
            tables["segments"][name] = f"{name} 0 {len(samples) / recognizer.rate:.4f}"
        tables["text"][name] = separator.join(word for part in chosen for word in part.words)
        tables["utt2spk"][name] = speaker
    os.replace(temporary, folder)
    write_data_dir(target, tables)
    print(f"{target}: {len(tables['text'])} utterances, {len(plans)} of them spliced")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.splice",
        description="Write a data directory with further utterances, spliced from parts of its own.",
    )
    parser.add_argument(
        "--model", required=True, help="a model trained on DIR: experiment folder, packed model, or hub id"
    )
    parser.add_argument("--copies", type=int, default=4, help="times that each part is used (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the parts (%(default)s)")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (%(default)s)")
    parser.add_argument("source", metavar="DIR", help="data directory, e.g. data/train")
    parser.add_argument("target", metavar="OUTPUT", help="data directory to write, e.g. data/train_splice")
    args = parser.parse_args()
    if args.copies < 1:
        raise UserError(f"--splice_copies {args.copies}: give 1 or more")

    import torch

    from espnet_lmu.recognition.recognizer import load_model

    torch.set_num_threads(1)
    splice(load_model(args.model), Path(args.source), Path(args.target), args.copies, args.seed, max(args.nj, 1))


if __name__ == "__main__":
    command_line(main)
