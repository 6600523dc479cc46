"""Features of pieces of a recording against those of the whole recording."""

import random

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from espnet2.asr.frontend.default import DefaultFrontend as ESPnetFrontend
from streaming_tools import RATE, cut, make_audio, random_pieces

from espnet_lmu.data.format import fbank, format_data_dir
from espnet_lmu.data.kaldi_dir import read_table, write_data_dir
from espnet_lmu.streaming.features import DefaultFrontend, KaldiFbank


def in_pieces(stream, samples: np.ndarray, sizes: list[int]) -> torch.Tensor:
    stream.reset()
    pieces = [torch.from_numpy(piece) for piece in cut(samples, sizes)]
    features = [stream.accept(piece, is_final=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    return torch.cat(features)


def cuts(length: int, seed: int) -> list[list[int]]:
    generator = random.Random(seed)
    return [random_pieces(length, generator) for _ in range(3)] + [[length]]


@pytest.mark.parametrize("rate", [16000, 8000, 11025])
@pytest.mark.parametrize("length", [1, 79, 80, 119, 120, 199, 279, 280, 560, 5000, 170000])
def test_kaldi_features(rate, length):
    samples = make_audio(length / RATE, seed=length)
    wanted = torch.from_numpy(fbank(samples, rate))
    for sizes in cuts(length, seed=length):
        features = in_pieces(KaldiFbank(rate), samples, sizes)
        torch.testing.assert_close(features, wanted, rtol=0, atol=1e-5)


FRONTENDS = [
    {"n_fft": 512, "win_length": 400, "hop_length": 160},
    {},
    {"n_fft": 400, "hop_length": 160, "n_mels": 40, "center": False},
    {"n_fft": 401, "hop_length": 100, "n_mels": 40},
    {"n_fft": 256, "hop_length": 300, "n_mels": 40, "frontend_conf": None},
]


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("options", FRONTENDS, ids=str)
@pytest.mark.parametrize("length", [600, 1281, 5000, 170000])
def test_espnets_features(options, length):
    frontend = ESPnetFrontend(fs=RATE, **options).eval()
    samples = make_audio(length / RATE, seed=length)
    wanted, _ = frontend(torch.from_numpy(samples)[None], torch.tensor([length]))
    for sizes in [*cuts(length, seed=length), [length - 1, 1], [300] * (length // 300) + [length % 300]]:
        features = in_pieces(DefaultFrontend(frontend), samples, [size for size in sizes if size])
        torch.testing.assert_close(features, wanted[0], rtol=0, atol=1e-5)


def test_a_recording_shorter_than_its_reflection_has_no_frames():
    stream = DefaultFrontend(ESPnetFrontend(fs=RATE))
    assert in_pieces(stream, make_audio(256 / RATE), [100, 156]).shape == (0, 80)
    assert in_pieces(stream, make_audio(257 / RATE), [100, 157]).shape == (3, 80)


def test_stored_features(tmp_path):
    """What stage 3 stored for a training, up to the 8 bits that it stores for a value."""
    soundfile.write(tmp_path / "u.wav", make_audio(3), RATE)
    tables = {"wav.scp": {"u": str(tmp_path / "u.wav")}, "text": {"u": "A"}, "utt2spk": {"u": "u"}}
    write_data_dir(tmp_path / "data", tables)
    format_data_dir(tmp_path / "data", tmp_path / "dump", "fbank", RATE, nj=1)
    stored = kaldiio.load_mat(read_table(tmp_path / "dump" / "feats.scp")["u"])
    samples, _ = soundfile.read(tmp_path / "u.wav", dtype="float32")
    features = in_pieces(KaldiFbank(RATE), samples, random_pieces(len(samples), random.Random(0))).numpy()
    assert features.shape == stored.shape
    assert np.abs(features - stored).mean() < 0.01 * np.ptp(features)
