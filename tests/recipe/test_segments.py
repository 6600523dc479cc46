"""Utterances inside long recordings: the exact samples of each, at any speed, and bad segments in one line."""

import kaldiio
import numpy as np
import pytest
import soundfile
from recipe_tools import RATE, one_line_error, run_module

from espnet_lmu.data.audio import read_audio
from espnet_lmu.data.check import measure
from espnet_lmu.data.format import fbank, format_data_dir
from espnet_lmu.data.kaldi_dir import excerpts, read_data_dir, read_table, write_data_dir, write_table
from espnet_lmu.data.segments import Excerpt, read_excerpt
from espnet_lmu.data.speed import perturb
from espnet_lmu.errors import UserError

SEGMENTS = {"talk-a": "talk 0.25 1.0001", "talk-b": "talk 1.5 4", "other-a": "other 0 0.5"}  # seconds


@pytest.fixture
def talks(tmp_path):
    """A data directory of three utterances in a SPHERE and a FLAC recording of noise, 4 s and 1 s."""
    directory = tmp_path / "data" / "talks"
    directory.mkdir(parents=True)
    samples = np.random.default_rng(0).integers(-9000, 9000, 4 * RATE, dtype=np.int16)
    soundfile.write(directory / "talk.sph", samples, RATE, format="NIST", subtype="PCM_16")
    soundfile.write(directory / "other.flac", samples[:RATE], RATE)
    recordings = {"talk": str(directory / "talk.sph"), "other": str(directory / "other.flac")}
    speakers = {key: key.split("-")[0] for key in SEGMENTS}
    texts = dict.fromkeys(SEGMENTS, "LOW HIGH")
    write_data_dir(directory, {"wav.scp": recordings, "segments": SEGMENTS, "text": texts, "utt2spk": speakers})
    return directory, samples


def test_stage_3_cuts_the_exact_samples(talks, tmp_path):
    directory, samples = talks
    format_data_dir(directory, tmp_path / "raw", "raw", RATE, nj=2)
    expected = {"talk-a": samples[4000:16002], "talk-b": samples[24000:64000], "other-a": samples[:8000]}
    paths = read_table(tmp_path / "raw" / "wav.scp")
    assert sorted(paths) == sorted(SEGMENTS) and not (tmp_path / "raw" / "segments").exists()
    for key, wanted in expected.items():
        cut, rate = soundfile.read(paths[key], dtype="int16")
        assert rate == RATE and np.array_equal(cut, wanted), key

    format_data_dir(directory, tmp_path / "fbank", "fbank", RATE, nj=1)
    stored = kaldiio.load_mat(read_table(tmp_path / "fbank" / "feats.scp")["talk-b"])
    alone = fbank(samples[24000:64000].astype(np.float32) / 32768, RATE)
    assert stored.shape == alone.shape and np.abs(stored - alone).max() < 0.2  # stored with 8 bits a value


def test_segments_are_seconds_at_any_rate_and_a_changed_segment_is_cut_again(talks, tmp_path):
    directory, samples = talks
    soundfile.write(directory / "other.flac", samples[:8000], 8000)
    read, rate = read_excerpt(Excerpt(str(directory / "other.flac"), 0.25, 0.75))
    assert rate == 8000 and np.array_equal(read, samples[2000:6000].astype(np.float32) / 32768)
    format_data_dir(directory, tmp_path / "raw", "raw", RATE, nj=1)
    assert read_table(tmp_path / "raw" / "utt2num_samples")["other-a"] == "8000"
    write_table(directory / "segments", {**SEGMENTS, "other-a": "other 0 0.25"})
    format_data_dir(directory, tmp_path / "raw", "raw", RATE, nj=1)
    assert read_table(tmp_path / "raw" / "utt2num_samples")["other-a"] == "4000"


def test_an_end_of_minus_one_is_that_of_the_recording(talks, tmp_path):
    directory, samples = talks
    write_table(directory / "segments", {"talk-a": "talk 0.25 -1", "talk-b": "talk 0 -1", "other-a": "other 1 -1.0"})
    audio = excerpts(read_data_dir(directory))
    assert np.array_equal(read_excerpt(audio["talk-a"])[0] * 32768, samples[4000:])
    assert np.array_equal(read_excerpt(audio["talk-b"])[0] * 32768, samples)
    assert measure(audio["talk-a"])["seconds"] == 3.75 and measure(audio["other-a"])["error"] == "segment"
    message = one_line_error(run_module("espnet_lmu.data.format", directory, tmp_path / "raw"))
    assert "other.flac: no samples from 1 to the end" in message
    write_table(directory / "segments", {"talk-a": "talk 0.25 -1", "talk-b": "talk 0 -1", "other-a": "other 2 -1"})
    message = one_line_error(run_module("espnet_lmu.data.format", directory, tmp_path / "raw"))
    assert "other.flac: lasts 1.000 s, but a segment is from 2 to the end" in message


def test_speeds_apply_to_segments(talks, tmp_path):
    directory, samples = talks
    tables = perturb(read_data_dir(directory), [0.5, 1.0], "data/train")
    assert tables["segments"]["sp0.5-talk-b"] == tables["segments"]["talk-b"] == "talk 1.5 4"
    assert sorted(tables["wav.scp"]) == ["other", "talk"] and len(tables["text"]) == 6
    write_data_dir(tmp_path / "sp", tables)
    format_data_dir(tmp_path / "sp", tmp_path / "raw", "raw", RATE, nj=1)
    lengths = read_table(tmp_path / "raw" / "utt2num_samples")
    assert lengths["sp0.5-talk-b"] == "80000" and lengths["talk-b"] == "40000"


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ("talk 2 1.5", "segments: talk-a: 2 to 1.5 s of talk: the end must be after the start"),
        ("talk 1 1", "the end must be after the start"),
        ("talk -1 1", "the start 0 or more"),
        ("talk -1 -1", "the start 0 or more"),
        ("talk 0 -2", "or -1, the recording's"),
        ("talk 0 inf", "the end must be after the start"),
        ("talk 0 nan", "the end must be after the start"),
        ("talk 0 one", 'segments: talk-a: "talk 0 one": give RECORDING START END'),
        ("talk 0", "give RECORDING START END"),
        ("speech 0 1", "segments: talk-a: the recording speech is not in .*wav.scp"),
    ],
)
def test_bad_segment_is_one_line(talks, segment, message):
    directory, _ = talks
    write_table(directory / "segments", {**SEGMENTS, "talk-a": segment})
    with pytest.raises(UserError, match=message):
        read_data_dir(directory)


def test_segment_beyond_the_recording_is_one_line(talks, tmp_path):
    directory, _ = talks
    write_table(directory / "segments", {**SEGMENTS, "talk-b": "talk 3.5 4.0001"})
    message = one_line_error(run_module("espnet_lmu.data.format", directory, tmp_path / "raw"))
    assert "segments: 1 utterances cannot be used" in message
    assert "talk-b: " in message and "lasts 4.000 s, but a segment is from 3.5 to 4.0001 s" in message
    assert not (tmp_path / "raw" / "wav.scp").exists()


def test_whole_file_is_read_without_segments(talks):
    directory, samples = talks
    whole, _ = read_excerpt(Excerpt(str(directory / "talk.sph")))
    assert np.array_equal(whole, read_audio(directory / "talk.sph")[0]) and len(whole) == len(samples)
