"""The demo corpus: spoken digit strings and short commands, made on the spot by eSpeak NG.

A speaker is one of eSpeak NG's variants on an English voice, speaking at many rates and pitches in a small
room with noise. The variants are divided among the sets: nobody in the validation or test set is heard in
training. Every utterance has its own random generator, seeded with the corpus's seed, its set and its
number, so that the corpus depends on its settings alone, not on the number of processes.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet_lmu.data import espeak
from espnet_lmu.data.files import command_line, naming
from espnet_lmu.data.kaldi_dir import write_data_dir
from espnet_lmu.errors import UserError
from espnet_lmu.parallel import follow_parent, interrupted_later
from espnet_lmu.progress import progress

SAMPLE_RATE = 16000
SETS = ("train", "valid", "test")

_NUM_UTTERANCES = {"train": 2000, "valid": 80, "test": 200}
_NUM_VARIANTS = {"valid": 8, "test": 12}  # training gets all others
# Of the English voices, en-shaw is left out: it reads the Shavian alphabet alone.
_VOICES = ("en", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc")
# Variants made to be hard to understand: whispers, croaks, robots, sped-up speech.
_ODD_VARIANTS = ("whisper", "whisperf", "croak", "Demonic", "fast", "UniRobot", "anikaRobot", "announcer", "Tweaky")
_ODD_PREFIXES = ("robosoft", "iven", "Ricishay")
_RATE = (120, 190)  # words per minute
_PITCH = (25, 75)
_SILENCE = (0.05, 0.25)  # seconds of noise alone at either end
_REVERBERATION = (0.05, 0.3)  # seconds until the echo has fallen by 60 dB
_SNR = (15.0, 35.0)  # dB
_PEAK = (0.1, 0.9)  # of full scale

# Hz at which training plays the samples, made for 22,050 Hz, back: that moves the formants, as vocal tracts of other
# lengths do, and so makes more voices of the few that there are.
_TRAINING_PLAYBACK_RATES = (19000, 20000, 21000, 22050, 23500, 25000, 26500)

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUM_DIGITS = (3, 6)
_COMMANDS = (
    (("turn", "switch"), ("on", "off"), ("the",), ("light", "fan", "radio", "heater", "lamp")),
    (("open", "close"), ("the",), ("door", "window", "garage", "curtain")),
    (("go", "turn", "move"), ("left", "right", "back")),
    (("set",), ("the",), ("timer", "alarm"), ("to",), _DIGITS[1:], ("minutes", "hours")),
    (("call",), _DIGITS, _DIGITS, _DIGITS),
    (("play", "stop", "skip"), ("the",), ("music", "song", "movie")),
    (("turn",), ("up", "down"), ("the",), ("volume", "music", "radio")),
)


class Speaker(NamedTuple):
    """A voice and a variant of eSpeak NG."""

    voice: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.voice}_{self.variant.replace(' ', '')}"


def demo_speakers(seed: int = 1) -> dict[str, list[Speaker]]:
    """The speakers of each set; no variant is in two sets. Training has its variants on every voice."""
    choose = random.Random(f"speakers {seed}")
    variants = [name for name in espeak.variants() if name not in _ODD_VARIANTS and not name.startswith(_ODD_PREFIXES)]
    choose.shuffle(variants)
    speakers = {}
    for name, count in _NUM_VARIANTS.items():
        taken, variants = variants[:count], variants[count:]
        speakers[name] = [Speaker(choose.choice(_VOICES), variant) for variant in taken]
    speakers["train"] = [Speaker(voice, variant) for voice in _VOICES for variant in variants]
    choose.shuffle(speakers["train"])
    return speakers


def make_demo_corpus(audio_dir: Path, data_dir: Path, seed: int = 1, num_jobs: int = 1, scale: float = 1.0) -> None:
    """Make the audio and the data directories `train`, `valid` and `test`.

    Args:
        audio_dir: Where the FLAC files (16 kHz, 16 bits, mono) go, one folder for each set.
        data_dir: Where the data directories go. Their wav.scp names the files by `audio_dir` as given here.
        seed: Another seed makes another corpus.
        num_jobs: Number of processes.
        scale: Size, as a multiple of the usual 2000 + 80 + 200 utterances.

    Raises:
        UserError: eSpeak NG is missing, or a number is out of range.
    """
    if num_jobs < 1:
        raise UserError(f"--nj {num_jobs}: give a number of processes of at least 1")
    if not scale > 0:
        raise UserError(f"--scale {scale}: give a number above 0")
    speakers = demo_speakers(seed)
    numbers = {name: range(max(1, round(_NUM_UTTERANCES[name] * scale))) for name in SETS}
    with (
        # A Pool would wait for ever for a process that was killed.
        ProcessPoolExecutor(num_jobs, multiprocessing.get_context("fork"), initializer=follow_parent) as pool,
        progress(total=sum(map(len, numbers.values())), desc="demo corpus", unit="utt") as bar,
    ):
        for name in SETS:
            (audio_dir / name).mkdir(parents=True, exist_ok=True)
            tables: dict[str, dict[str, str]] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
            make = partial(_make_utterance, audio_dir / name, speakers[name], seed)
            with interrupted_later():
                made = pool.map(make, numbers[name], chunksize=4)
            # Closed, it asks for no more: a full disk would otherwise wait for the rest.
            with contextlib.closing(_results(made)) as utterances:
                for utterance in utterances:
                    path = audio_dir / name / f"{utterance.key}.flac"
                    _write_flac(path, utterance)
                    tables["wav.scp"][utterance.key] = str(path)
                    tables["text"][utterance.key] = utterance.text.upper()
                    tables["utt2spk"][utterance.key] = utterance.speaker
                    bar.update()
            write_data_dir(data_dir / name, tables)


def _results(utterances: Iterator[_Utterance]) -> Iterator[_Utterance]:
    try:
        yield from utterances
    except BrokenProcessPool:
        raise UserError("a process that makes the demo corpus was killed (out of memory?); run this again") from None


def _write_flac(path: Path, utterance: _Utterance) -> None:
    import soundfile

    # Imported after the pool has forked: eSpeak NG's fork for each utterance costs six times as much in a
    # process that holds torch, which is why the signals are resampled here and not where they are made.
    from espnet_lmu.data.audio import resample

    unfinished = path.with_name(f".{path.name}.tmp")  # what a kill leaves is written over by the next run
    signal = resample(np.load(utterance.signal), utterance.sample_rate, SAMPLE_RATE)
    soundfile.write(unfinished, signal, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    os.replace(unfinished, path)
    utterance.signal.unlink()


class _Utterance(NamedTuple):
    key: str
    speaker: str
    text: str
    signal: Path
    sample_rate: int


def _make_utterance(folder: Path, speakers: list[Speaker], seed: int, number: int) -> _Utterance:
    name = folder.name
    chosen = random.Random(f"{seed} {name} {number}")
    speaker = speakers[number % len(speakers)]
    text = _draw_text(chosen)
    speech, sample_rate = _speak(text, speaker, chosen)

    def speak_other() -> np.ndarray:
        return _speak(_draw_text(chosen), chosen.choice(speakers), chosen)[0]

    signal = _record(speech, sample_rate, speak_other, chosen)
    if name == "train":
        sample_rate = chosen.choice(_TRAINING_PLAYBACK_RATES)
    key = f"{speaker.name}-{name}{number:04d}"
    # Not through the pool's pipe: where a process is killed that has sent half of it, the pool waits for ever.
    path = folder / f".{key}.npy.tmp"
    with naming(path), open(path, "wb") as stream:
        np.save(stream, signal.astype(np.float32))
    return _Utterance(key, speaker.name, text, path, sample_rate)


def _draw_text(chosen: random.Random) -> str:
    if chosen.random() < 0.5:
        return " ".join(chosen.choices(_DIGITS, k=chosen.randint(*_NUM_DIGITS)))
    return " ".join(chosen.choice(words) for words in chosen.choice(_COMMANDS))


def _speak(text: str, speaker: Speaker, chosen: random.Random) -> tuple[np.ndarray, int]:
    """The text as samples (n,) in [-1, 1], and their rate in Hz."""
    rate, pitch = chosen.randint(*_RATE), chosen.randint(*_PITCH)
    samples, sample_rate = espeak.synthesize(text, speaker.voice, speaker.variant, rate, pitch)
    return samples / 32768.0, sample_rate


def _record(
    speech: np.ndarray, sample_rate: int, speak_other: Callable[[], np.ndarray], chosen: random.Random
) -> np.ndarray:
    """What a microphone hears of the speech (n,): silence around it, an echo, noise, some level."""
    generator = np.random.default_rng(chosen.getrandbits(64))
    around = [round(sample_rate * chosen.uniform(*_SILENCE)) for _ in range(2)]
    speech = _reverberate(np.pad(speech, around), sample_rate, chosen.uniform(*_REVERBERATION), generator)
    kind = chosen.choice(("white", "pink", "brown", "hum", "babble"))
    if kind == "babble":
        noise = sum(np.resize(speak_other(), len(speech)) for _ in range(3))
    elif kind == "hum":
        noise = _hum(len(speech), sample_rate, chosen.choice((50, 60)), generator)
    else:
        noise = _coloured_noise(len(speech), {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind], generator)
    signal = speech + noise * (_level(speech) / _level(noise)) * 10 ** (-chosen.uniform(*_SNR) / 20)
    return signal * (chosen.uniform(*_PEAK) / np.abs(signal).max())


def _level(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(signal**2)))


def _reverberate(speech: np.ndarray, sample_rate: int, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Convolve with an impulse and a tail of noise that falls by 60 dB in the given time; keeps the length."""
    time = np.arange(round(sample_rate * seconds)) / sample_rate
    response = generator.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    response *= 0.3 / np.linalg.norm(response)
    response[0] = 1.0
    size = _fast_fft_size(len(speech) + len(response))
    return np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(response, size), size)[: len(speech)]


def _coloured_noise(length: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise (length,) whose amplitude falls as frequency ** -exponent."""
    size = _fast_fft_size(length)
    spectrum = np.fft.rfft(generator.standard_normal(size))
    frequency = np.arange(len(spectrum))
    frequency[0] = 1
    return np.fft.irfft(spectrum * frequency**-exponent, size)[:length]


def _fast_fft_size(length: int) -> int:
    """The next power of two."""
    return 1 << (length - 1).bit_length()


def _hum(length: int, sample_rate: int, frequency: float, generator: np.random.Generator) -> np.ndarray:
    """Mains hum (length,): the frequency and its harmonics, over a floor of white noise."""
    time = np.arange(length) / sample_rate
    harmonics = np.arange(1, 8)[:, None]
    phases = generator.uniform(0, 2 * np.pi, harmonics.shape)
    tones = np.sin(2 * np.pi * frequency * harmonics * time + phases) / harmonics
    return tones.sum(axis=0) + 0.05 * generator.standard_normal(length)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_lmu.data.demo_corpus",
        description="Make the demo corpus with eSpeak NG: audio and data directories train, valid and test.",
    )
    parser.add_argument("--audio", metavar="DIR", default="downloads/demo", help="where the audio goes (%(default)s)")
    parser.add_argument("--output", metavar="DIR", default="data", help="where data directories go (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes another corpus (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="size, as a multiple of the usual one (%(default)s)")
    parser.add_argument("--nj", type=int, default=os.cpu_count(), help="number of processes (%(default)s)")
    args = parser.parse_args()
    make_demo_corpus(Path(args.audio), Path(args.output), args.seed, args.nj, args.scale)


if __name__ == "__main__":
    command_line(main)
