"""Recordings of any length, rate and channel count, by a model that hears tones: no training, no ESPnet."""

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from espnet_lmu.data.audio import read_audio
from espnet_lmu.errors import UserError
from espnet_lmu.recognition import recognizer as module
from espnet_lmu.recognition.recognizer import OVERLAP, WINDOW, Recognizer, cut_windows
from espnet_lmu.recognition.transcript import Token

RATE = 16000
HOP = 640
PITCHES = (300.0, 900.0, 2500.0)  # Hz of tokens 1, 2, 3


class ToneDecoder:
    """In place of a `GreedyDecoder`: each 40 ms are the token of the loudest pitch, or the blank if they are quiet."""

    input_size, fs, hop_length, sos_eos = None, RATE, HOP, 4
    words = ("<blank>", "▁LOW", "▁MID", "▁HIGH", "<sos/eos>")

    def __init__(self):
        self.converter = type("Converter", (), {"token_list": list(self.words)})

    def text(self, ids):
        return " ".join(self.words[i][1:] for i in ids)

    def log_posteriors(self, inputs):
        outputs = []
        for samples in inputs:
            if len(samples) < HOP:
                outputs.append(None)
                continue
            frames = torch.from_numpy(samples)[: len(samples) // HOP * HOP].view(-1, HOP)
            spectrum = torch.fft.rfft(frames).abs() / HOP
            bins = [round(pitch * HOP / RATE) for pitch in PITCHES]
            scores = torch.stack([torch.full((len(frames),), 0.05), *(spectrum[:, b] for b in bins)], dim=1)
            outputs.append(torch.cat([scores, torch.zeros(len(frames), 1)], dim=1).mul(100).log_softmax(-1))
        return outputs


def _speak(tokens, rate: int = RATE) -> np.ndarray:
    """0.2 s of a tone and 0.2 s of silence for each token."""
    seconds = np.arange(rate // 5) / rate
    pieces = [np.append(0.4 * np.sin(2 * np.pi * PITCHES[i - 1] * seconds), np.zeros(rate // 5)) for i in tokens]
    return np.concatenate(pieces).astype(np.float32)


@pytest.fixture
def recognizer():
    return Recognizer(ToneDecoder(), RATE)


def _tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 4, count).tolist()


def test_windows_cover_a_recording_and_overlap():
    for duration in (0.5, WINDOW, WINDOW + 0.01, 3 * WINDOW, 3600.0):
        windows = cut_windows(duration, 0.06)
        assert windows[0][0] == 0 and windows[-1][1] == duration
        for (_, stop), (start, _) in zip(windows, windows[1:], strict=False):
            assert stop - start == pytest.approx(OVERLAP, abs=0.06)
            assert start / 0.06 == pytest.approx(round(start / 0.06))


@pytest.mark.parametrize("nj", [1, 2])
def test_long_recording_is_read_in_windows_and_loses_no_word_at_the_seams(recognizer, tmp_path, monkeypatch, nj):
    tokens = _tokens(500)  # 200 s
    soundfile.write(tmp_path / "long.flac", _speak(tokens), RATE)
    lengths = []

    def read(path, start=0, frames=None):
        lengths.append(frames)
        return read_audio(path, start, frames)

    monkeypatch.setattr(module, "read_audio", read)
    (transcript,) = recognizer.transcribe_all([tmp_path / "long.flac"], nj)
    assert transcript.text == recognizer.decoder.text(tokens)
    assert transcript.duration == 200.0
    assert all(frames <= WINDOW * RATE for frames in lengths)
    assert len(lengths) == (8 if nj == 1 else 0)
    for i, (word, token) in enumerate(zip(transcript.words, tokens, strict=True)):
        assert word.text == recognizer.decoder.text([token])
        assert word.start == pytest.approx(0.4 * i, abs=0.041)
        assert word.end == pytest.approx(0.4 * i + 0.2, abs=0.041)
        assert word.confidence > 0.9


def test_rates_and_channels_do_not_matter(recognizer, tmp_path):
    tokens = _tokens(100)
    expected = recognizer.decoder.text(tokens)
    for rate in (8000, 22050, 44100, 48000):
        stereo = np.stack([1.8 * _speak(tokens, rate), np.zeros(rate // 5 * 2 * len(tokens))], axis=1)
        soundfile.write(tmp_path / f"{rate}.wav", stereo, rate)
        assert recognizer.transcribe(tmp_path / f"{rate}.wav").text == expected
        assert recognizer.transcribe((stereo, rate)).text == expected


def test_recordings_keep_their_order_and_a_broken_one_stops_no_other(recognizer, tmp_path):
    texts = []
    for i in range(20):
        tokens = _tokens(1 + 7 * i % 20, seed=i)
        soundfile.write(tmp_path / f"{i}.wav", _speak(tokens), RATE)
        texts.append(recognizer.decoder.text(tokens))
    paths = [tmp_path / f"{i}.wav" for i in range(20)]
    (tmp_path / "3.wav").write_bytes(b"no audio")
    flac = tmp_path / "long.flac"
    soundfile.write(flac, 0.1 * np.random.default_rng(0).standard_normal(RATE * 100), RATE)
    flac.write_bytes(flac.read_bytes()[:-100000])  # its last windows cannot be read
    paths[7] = flac
    paths[19] = tmp_path / "absent.wav"
    for nj in (1, 2):
        results = list(recognizer.transcribe_all(paths, nj))
        for i, result in enumerate(results):
            if i in (3, 7, 19):
                assert isinstance(result, UserError) and str(paths[i]) in str(result)
            else:
                assert result.text == texts[i]
    assert [transcript.text for transcript in recognizer.transcribe(paths[:3])] == texts[:3]
    with pytest.raises(UserError, match="absent.wav"):
        recognizer.transcribe(paths[18:])


def test_memory_does_not_grow_with_the_number_of_recordings(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", _speak(_tokens(50)), RATE)  # 20 s, of which six are a batch
    for number, transcript in enumerate(recognizer.transcribe_all([tmp_path / "a.wav"] * 40, nj=2)):
        assert len(transcript.words) == 50
        if number == 39:
            # by type, not isinstance, which asks weak references to what is gone
            assert 50 <= sum(type(item) is Token for item in gc.get_objects()) < 10 * 50


def test_threads_with_processes_of_their_own_get_their_own_recordings(recognizer, tmp_path):
    lists = [[(_speak(_tokens(20, seed=2 * i + j)), RATE) for i in range(13)] for j in range(2)]
    wanted = [[result.text for result in recognizer.transcribe(recordings)] for recordings in lists]
    for _ in range(3):
        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(lambda recordings: list(recognizer.transcribe_all(recordings, nj=2)), lists))
        assert [[result.text for result in texts] for texts in results] == wanted


def test_no_word_ends_after_its_recording(recognizer):
    samples = _speak([1, 2])[: RATE // 5 * 3 - HOP // 2]
    recognizer.decoder.log_posteriors = lambda inputs, original=recognizer.decoder.log_posteriors: original(
        [np.pad(samples, (0, HOP), mode="wrap") for samples in inputs]
    )
    transcript = recognizer.transcribe((samples, RATE))
    assert transcript.words and max(word.end for word in transcript.words) <= transcript.duration


def test_pipes_are_refused_and_not_waited_for(recognizer, tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    for audio in (tmp_path / "a.wav", "/dev/null"):
        with pytest.raises(UserError, match=f"{audio}: a pipe or a device; give a file"):
            recognizer.transcribe(audio)
    with pytest.raises(UserError, match="a pipe or a device"):
        read_audio(tmp_path / "a.wav")
    with pytest.raises(UserError, match="not readable audio"):
        recognizer.transcribe("\udcff.wav")


def test_short_and_wrong_input(recognizer):
    assert recognizer.transcribe((np.zeros(100, np.float32), RATE)).text == ""
    for samples, message in (
        (np.zeros(0), "no samples"),
        (np.zeros(100, np.int16), "floating-point"),
        (np.full(1000, np.nan), "not numbers"),
        (np.append(np.zeros(1000), 1e30), "not numbers, or beyond 1e.12"),
    ):
        with pytest.raises(UserError, match=message):
            recognizer.transcribe((samples, RATE))
    for audio, message in (
        (np.zeros(100), "give the path of a file, or .samples, rate."),
        ((np.zeros(100), RATE, 1), "give the path of a file, or .samples, rate."),
        ((np.zeros((2, RATE)), RATE), "frames first"),
        ((np.zeros(100), 0), "a sampling rate of 0 Hz"),
    ):
        with pytest.raises(UserError, match=message):
            recognizer.transcribe(audio)


def test_importing_the_package_loads_nothing_of_this():
    code = "import sys, espnet_lmu; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'espnet2')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.mp3", None),
        ("a.ogg", "VORBIS"),
        ("a.opus", "OPUS"),
        ("a.sph", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.wav", "ULAW"),
        ("a.aiff", None),
    ],
)
def test_formats_are_read_in_windows(recognizer, tmp_path, name, subtype):
    form = {"opus": "OGG", "sph": "NIST"}.get(name.rsplit(".", 1)[1])
    tokens = _tokens(150)  # 60 s
    soundfile.write(tmp_path / name, _speak(tokens), RATE, format=form, subtype=subtype)
    assert recognizer.transcribe(tmp_path / name).text == recognizer.decoder.text(tokens)
