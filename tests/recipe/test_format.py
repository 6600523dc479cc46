"""Stages 2 to 4: audio that is complete, at one rate and speed; finished shards are kept; what is left out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from recipe_tools import RATE, ROOT, one_line_error, run_module, tone_words

from espnet_lmu.data import format
from espnet_lmu.data.audio import audio_length, check_rate, read_audio, resample
from espnet_lmu.data.filter import filter_data_dir, read_durations
from espnet_lmu.data.format import _SHARD_SIZE, fbank, format_data_dir
from espnet_lmu.data.kaldi_dir import read_data_dir, read_table, write_data_dir, write_table
from espnet_lmu.data.speed import parse_factors, perturb
from espnet_lmu.errors import UserError


@pytest.mark.parametrize("format", ["WAV", "NIST", "FLAC", "AIFF", "AU", "W64", "RF64", "CAF", "VORBIS", "OPUS"])
def test_cut_off_audio_is_refused(tmp_path, format):
    suffix = format.lower()
    path = tmp_path / f"a.{suffix}"
    samples = tone_words(["LOW", "HIGH"] * 10)
    lossy = format in ("VORBIS", "OPUS")
    container = ("OGG", format) if lossy else (format, "PCM_16")
    soundfile.write(path, samples, RATE, format=container[0], subtype=container[1])
    read, rate = read_audio(path)
    assert rate == RATE and len(read) == len(samples)
    assert lossy or np.abs(read - samples).max() < 1e-4
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match=f"a.{suffix}: .*cut off"):
        read_audio(path)


def test_unusable_audio_is_refused_and_channels_are_averaged(tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan]), RATE, subtype="FLOAT")
    for name, message in (("text.wav", "not readable"), ("none.wav", "no samples"), ("nan.wav", "not numbers")):
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            read_audio(tmp_path / name)
    soundfile.write(tmp_path / "stereo.wav", np.array([[0.5, 0.25]] * 10), RATE)
    assert np.allclose(read_audio(tmp_path / "stereo.wav")[0], 0.375)


def pitch(samples: np.ndarray, rate: int) -> float:
    """Frequency (Hz) of the strongest partial."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def test_resampling_keeps_the_pitch_and_speed_scales_it():
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000).astype(np.float32)
    assert resample(tone, 8000, 8000) is tone
    for new_rate, speed in ((16000, 1.0), (16000, 0.9), (8000, 1.1)):
        changed = resample(tone, 8000, new_rate, speed)
        assert abs(len(changed) / new_rate - 1 / speed) < 1e-3
        assert abs(pitch(changed, new_rate) - 1000 * speed) < 2


def test_speed_perturbed_copies_have_their_own_ids_and_speakers(data_set):
    perturbed = perturb(read_data_dir(data_set("train", 2)), parse_factors("0.9 1.0"), "data/train")
    assert perturbed["utt2spk"] == {
        "spk0-000": "spk0",
        "spk1-001": "spk1",
        "sp0.9-spk0-000": "sp0.9-spk0",
        "sp0.9-spk1-001": "sp0.9-spk1",
    }
    assert perturbed["utt2speed"]["sp0.9-spk0-000"] == "0.9" and perturbed["utt2speed"]["spk0-000"] == "1"
    assert perturbed["text"]["sp0.9-spk1-001"] == perturbed["text"]["spk1-001"]
    with pytest.raises(UserError, match="data/train: at speed 0.9 the copy of spk0-000 would have the id of another"):
        perturb(perturbed, parse_factors("1.0 0.9"), "data/train")
    for text in ("", "fast", "1.0 1.0", "0.9 0.90000001", "3"):
        with pytest.raises(UserError, match="speed_perturb_factors"):
            parse_factors(text)


def test_raw_audio_becomes_flac_of_the_rate_and_speed_asked_for(data_set, tmp_path, capsys):
    source = data_set("train", 3)
    soundfile.write(source / "audio" / "spk0-000.wav", np.zeros(4000), 8000)
    write_table(source / "utt2speed", {"spk0-000": "1", "spk1-001": "0.9", "spk0-002": "1"})
    format_data_dir(source, tmp_path / "dump", "raw", RATE, nj=2)
    assert "1 of 3 utterances had another sampling rate" in capsys.readouterr().out
    paths, lengths = (read_table(tmp_path / "dump" / name) for name in ("wav.scp", "utt2num_samples"))
    assert lengths["spk0-000"] == "8000"
    for key, path in paths.items():
        info = soundfile.info(path)
        assert (info.format, info.samplerate, info.frames) == ("FLAC", RATE, int(lengths[key]))
    original = soundfile.info(source / "audio" / "spk1-001.wav").frames
    assert abs(int(lengths["spk1-001"]) - original / 0.9) <= 1
    assert read_table(tmp_path / "dump" / "text") == read_table(source / "text")
    assert (tmp_path / "dump" / "feats_type").read_text() == "raw\n"


def test_fbank_archive_holds_the_features_and_their_shapes(data_set, tmp_path):
    source = data_set("train", 3)
    format_data_dir(source, tmp_path / "dump", "fbank", RATE, nj=1)
    scp, shapes = (read_table(tmp_path / "dump" / name) for name in ("feats.scp", "feats_shape"))
    for key, path in read_table(source / "wav.scp").items():
        samples, _ = read_audio(path)
        expected = fbank(samples, RATE)
        stored = kaldiio.load_mat(scp[key])
        assert shapes[key] == f"{(len(samples) + 80) // 160},80" and stored.shape == expected.shape
        assert np.abs(stored - expected).max() < 0.2  # stored with 8 bits a value
    assert not (tmp_path / "dump" / "wav.scp").exists()
    assert read_durations(tmp_path / "dump", RATE)["spk0-000"] == int(shapes["spk0-000"].split(",")[0]) / 100


def test_finished_shards_are_kept_until_their_source_or_options_change(data_set, tmp_path):
    source, target = data_set("train", _SHARD_SIZE + 2), tmp_path / "dump"

    def made() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (target / "data").glob("*.json")}

    format_data_dir(source, target, "raw", RATE, nj=2)
    first = made()
    assert sorted(first) == ["format.1.json", "format.2.json"]
    format_data_dir(source, target, "raw", RATE, nj=1)
    assert made() == first

    last = read_table(source / "wav.scp")[max(read_table(source / "wav.scp"))]
    soundfile.write(last, tone_words(["LOW"]), RATE)
    format_data_dir(source, target, "raw", RATE, nj=1)
    second = made()
    assert second["format.1.json"] == first["format.1.json"] and second["format.2.json"] != first["format.2.json"]
    assert read_table(target / "utt2num_samples")[max(read_table(source / "wav.scp"))] == str(len(tone_words(["LOW"])))

    next((target / "data" / "format.1").glob("*.flac")).unlink()
    format_data_dir(source, target, "raw", RATE, nj=1)
    assert made()["format.1.json"] != first["format.1.json"]
    files = list((target / "data" / "format.1").glob("*.flac"))
    assert len(files) == _SHARD_SIZE
    size = files[0].stat().st_size
    os.truncate(files[0], size // 2)
    format_data_dir(source, target, "raw", RATE, nj=1)
    assert files[0].stat().st_size == size


def test_a_rate_is_a_whole_number():
    with pytest.raises(UserError, match="a sampling rate of 8000.0 Hz; it must be a whole number"):
        check_rate("audio", 8000.0)
    check_rate("audio", np.int64(8000))


def test_rates_that_nobody_uses(tmp_path):
    noise = np.random.default_rng(0).standard_normal(60000).astype(np.float32) * 0.1
    for rate in (3999, 384001, 768001):
        soundfile.write(tmp_path / "a.wav", noise, rate)
        for read in (read_audio, audio_length):
            with pytest.raises(
                UserError, match=f"a.wav: a sampling rate of {rate} Hz; it must be a whole number from 4000 to 384000"
            ):
                read(tmp_path / "a.wav")
    # No common divisor with 16,000: the filter of the exact ratio would take gigabytes.
    for odd, near in ((11127, 11128), (44101, 44100), (16001, 16000)):
        samples = resample(noise, odd, RATE)
        assert abs(len(samples) - len(noise) * RATE / odd) < 2e-4 * len(samples)
        assert np.abs(samples[:1000] - resample(noise, near, RATE)[:1000]).max() < 0.05


def test_unreadable_recordings_are_named_and_nothing_is_half_written(data_set, tmp_path):
    source, target = data_set("train", _SHARD_SIZE + 2), tmp_path / "dump"
    broken = sorted(read_table(source / "wav.scp"))[0]
    (source / "audio" / f"{broken}.wav").write_text("x")
    message = one_line_error(run_module("espnet_lmu.data.format", "--nj", 2, source, target))
    assert "1 utterances cannot be used" in message and f"{broken}.wav" in message
    assert not (target / "wav.scp").exists()
    assert [path.name for path in sorted((target / "data").iterdir())] == ["format.2", "format.2.json"]
    assert json.loads((target / "data" / "format.2.json").read_text())["errors"] == []


@pytest.mark.parametrize("length", [400, 401, 559, 560, 7123])
@pytest.mark.parametrize("rate", [16000, 8000, 11025])
def test_features_are_kaldis_without_snipped_edges(rate, length):
    samples = 0.1 * torch.randn(1, length, generator=torch.Generator().manual_seed(length))
    expected = torchaudio.compliance.kaldi.fbank(
        samples, num_mel_bins=80, sample_frequency=rate, high_freq=-400, snip_edges=False, dither=0
    )
    features = fbank(samples[0].numpy(), rate)
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-5)


def test_audio_too_short_for_features_is_named(data_set, tmp_path):
    source = data_set("train", 2)
    short = sorted(read_table(source / "wav.scp"))[0]
    soundfile.write(source / "audio" / f"{short}.wav", np.zeros(79), RATE)
    assert fbank(np.zeros(79, dtype=np.float32), RATE).shape == (0, 80)
    with pytest.raises(UserError, match=f"{short}: 79 samples are too few"):
        format_data_dir(source, tmp_path / "dump", "fbank", RATE, nj=1)


def test_killed_process_is_one_line_and_leaves_the_finished_shards(data_set, tmp_path, monkeypatch):
    source, target = data_set("train", _SHARD_SIZE + 2), tmp_path / "dump"
    last = max(read_table(source / "wav.scp"))
    read = format.read_excerpt

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(format, "read_excerpt", lambda audio: kill() if last in audio.path else read(audio))
    with pytest.raises(UserError, match="1 of 2 pieces failed: format.2: its process was killed"):
        format_data_dir(source, target, "raw", RATE, nj=1)
    assert not (target / "wav.scp").exists() and (target / "data" / "format.1.json").exists()
    monkeypatch.undo()
    format_data_dir(source, target, "raw", RATE, nj=1)
    assert len(read_table(target / "wav.scp")) == _SHARD_SIZE + 2


def test_kill_in_the_middle_keeps_finished_shards_and_spoils_none(data_set, tmp_path):
    source, target = data_set("train", 2), tmp_path / "dump"
    tables = read_data_dir(source)
    names = {f"{key}-{i:03d}": key for key in tables["text"] for i in range(5 * _SHARD_SIZE)}
    write_data_dir(source, {file: {name: table[key] for name, key in names.items()} for file, table in tables.items()})

    command = [sys.executable, "-m", "espnet_lmu.data.format", "--nj", "2", str(source), str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (finished := list((target / "data").glob("*.json"))) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (target / "wav.scp").exists()
    kept = {path: path.stat().st_mtime_ns for path in finished}

    assert run_module("espnet_lmu.data.format", "--nj", 2, source, target).returncode == 0
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert not [path for path in target.rglob("*") if path.name.endswith(".tmp")]
    format_data_dir(source, tmp_path / "whole", "raw", RATE, nj=1)
    paths = read_table(target / "wav.scp")
    assert read_table(target / "utt2num_samples") == read_table(tmp_path / "whole" / "utt2num_samples")
    for key, path in read_table(tmp_path / "whole" / "wav.scp").items():
        assert Path(paths[key]).read_bytes() == Path(path).read_bytes()


def test_training_leaves_out_short_long_and_untranscribed_utterances(data_set, tmp_path, capsys):
    source = data_set("train", 6)
    for key, seconds in (("spk0-000", 0.1), ("spk1-001", 5.0)):
        soundfile.write(source / "audio" / f"{key}.wav", np.zeros(int(seconds * RATE)), RATE)
    write_table(source / "text", {**read_table(source / "text"), "spk0-002": ""})
    format_data_dir(source, tmp_path / "org", "raw", RATE, nj=1)
    filter_data_dir(tmp_path / "org", tmp_path / "dump", RATE, minimum=0.1, maximum=4.0)
    output = capsys.readouterr().out
    assert "1 utterances not longer than 0.1 s: spk0-000" in output
    assert "1 utterances not shorter than 4 s: spk1-001" in output
    assert "1 utterances without a transcript: spk0-002" in output
    for name in ("wav.scp", "text", "utt2spk", "utt2num_samples"):
        assert list(read_table(tmp_path / "dump" / name)) == ["spk0-004", "spk1-003", "spk1-005"]
    with pytest.raises(UserError, match="no utterance is left"):
        filter_data_dir(tmp_path / "org", tmp_path / "dump", RATE, minimum=10, maximum=20)
    report = run_module("espnet_lmu.data.filter", "--report", tmp_path / "org")
    assert "1 utterances may be too short to decode" in report.stdout and "spk0-000" in report.stdout


def test_commands_refuse_bad_options_in_one_line(data_set, tmp_path):
    source = data_set("train", 1)
    result = run_module("espnet_lmu.data.format", "--fs", "sixteen", source, tmp_path / "dump")
    assert "--fs sixteen: give a sampling rate" in one_line_error(result)
    result = run_module("espnet_lmu.data.speed", "--factors", "x", source, tmp_path / "sp")
    assert "--speed_perturb_factors" in one_line_error(result) and not (tmp_path / "sp").exists()


def test_every_id_has_a_file_of_its_own(tmp_path):
    names = ["s/1", "s_1", "s%2F1", "s%1"]
    for i in range(len(names)):
        soundfile.write(tmp_path / f"{i}.wav", np.full(1600 * (i + 1), 0.1), RATE)
    tables = {"wav.scp": {name: str(tmp_path / f"{i}.wav") for i, name in enumerate(names)}}
    tables |= {"text": dict.fromkeys(names, "A"), "utt2spk": dict.fromkeys(names, "s")}
    write_data_dir(tmp_path / "data", tables)
    format_data_dir(tmp_path / "data", tmp_path / "dump", "raw", RATE, nj=1)
    paths = read_table(tmp_path / "dump" / "wav.scp")
    assert [len(read_audio(paths[name])[0]) for name in names] == [1600, 3200, 4800, 6400]
