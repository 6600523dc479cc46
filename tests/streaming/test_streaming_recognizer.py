"""Text of audio in pieces against greedy decoding of the whole."""

import random

import numpy as np
import pytest
import torch
from streaming_tools import LETTERS, RATE, cut, make_audio, random_pieces, write_model

from espnet_lmu.data.format import fbank, frame_count
from espnet_lmu.decoding.greedy import GreedyDecoder
from espnet_lmu.errors import UserError
from espnet_lmu.streaming import StreamingRecognizer
from espnet_lmu.streaming.recognizer import GreedyText


def offline(model: tuple, samples: np.ndarray, chunk: int) -> tuple[str, torch.Tensor]:
    """The text, and what the encoder gave CTC for it, (T, D)."""
    decoder = GreedyDecoder(*model)
    decoder.model.encoder.attention_chunk = chunk
    encoded = given_to(decoder.model.ctc, "log_softmax")
    nothing = torch.zeros(0, decoder.model.encoder.output_size())
    if decoder.input_size is not None and not frame_count(len(samples), RATE):
        return "", nothing
    text = decoder.decode([samples if decoder.input_size is None else fbank(samples, RATE)])[0].text
    return text, encoded[0][0] if encoded else nothing


def given_to(ctc: torch.nn.Module, name: str) -> list[torch.Tensor]:
    """The outputs of the encoder that a method of the CTC module is given from now on, (B, T, D) each."""
    method, given = getattr(ctc, name), []

    def listen(encoded):
        given.append(encoded)
        return method(encoded)

    setattr(ctc, name, listen)
    return given


@pytest.mark.parametrize("kind", ["raw_model", "fbank_model"])
def test_any_cut_gives_the_output_and_the_text_of_the_whole(kind, request):
    model = request.getfixturevalue(kind)
    samples = make_audio(23.7)
    recognizer = StreamingRecognizer(*model)
    assert (recognizer.fs, recognizer.chunk) == (RATE, 2)
    encoded = given_to(recognizer._decoder.model.ctc, "argmax")
    generator = random.Random(0)
    for chunk in (8, 2, 100):
        wanted, wanted_encoded = offline(model, samples, chunk)
        assert len(wanted.split()) > 5
        recognizer = recognizer.another(chunk * 0.04)
        assert recognizer.chunk == chunk
        for sizes in [random_pieces(len(samples), generator) for _ in range(3)] + [[160] * 2370, [len(samples)]]:
            recognizer.reset()
            encoded.clear()
            before, taken = recognizer.accept(np.zeros(0, dtype=np.float32)), 0
            for piece in cut(samples, sizes):
                taken += len(piece)
                partial = recognizer.accept(piece)
                assert partial.seconds == taken / RATE
                assert partial.text.startswith(before.text) and partial.stable.startswith(before.stable)
                assert partial.text.startswith(partial.stable) and wanted.startswith(partial.text)
                before = partial
            final = recognizer.finish()
            assert final.text == final.stable == wanted
            torch.testing.assert_close(torch.cat(encoded, 1)[0], wanted_encoded, rtol=0, atol=1e-5)
            assert recognizer.finish() == final


@pytest.mark.parametrize("kind", ["raw_model", "fbank_model"])
def test_latency_is_how_long_the_text_takes(kind, request):
    """The first frame's outputs are there after `latency` seconds, and not a sample earlier."""
    recognizer = StreamingRecognizer(*request.getfixturevalue(kind))
    recognizer = recognizer.another(0.16)
    # Four encoder frames of 40 ms: the last one needs 16 feature frames. Of Kaldi's, the first one is about the 25 ms
    # around 5 ms; of ESPnet's, about the 32 ms around 0.
    assert recognizer.latency == pytest.approx(15 * 0.01 + (0.0175 if kind == "fbank_model" else 0.016))
    heard = []
    recognizer._text.accept = heard.extend
    samples = make_audio(2)
    first = round(recognizer.latency * RATE)
    recognizer.accept(samples[: first - 1])
    assert len(heard) == 0
    recognizer.accept(samples[first - 1 : first])
    assert len(heard) == 4
    recognizer.accept(samples[first : first + 2559])
    assert len(heard) == 4
    recognizer.accept(samples[first + 2559 : first + 2560])
    assert len(heard) == 8


def test_recognizers_of_one_model_do_not_disturb_each_other(fbank_model):
    recordings = [make_audio(6, seed) for seed in range(3)]
    recognizer = StreamingRecognizer(*fbank_model)
    wanted = []
    for chunk, recording in zip((0.32, 0.16, 1.0), recordings, strict=True):
        alone = recognizer.another(chunk)
        alone.accept(recording)
        wanted.append(alone.finish().text)
    clients = [recognizer.another(chunk) for chunk in (0.32, 0.16, 1.0)]
    for begin in range(0, 6 * RATE, 3000):
        for client, recording in zip(clients, recordings, strict=True):
            client.accept(recording[begin : begin + 3000])
    assert [client.finish().text for client in clients] == wanted


def test_bad_samples_change_nothing(fbank_model):
    samples = make_audio(4)
    recognizer = StreamingRecognizer(*fbank_model)
    recognizer.accept(samples)
    wanted = recognizer.finish().text
    with pytest.raises(RuntimeError, match="reset"):
        recognizer.accept(samples)
    recognizer.reset()
    recognizer.accept(samples[:30000])
    for bad, message in (
        (np.array([0.1, np.nan], dtype=np.float32), "not numbers"),
        (np.array([0.1, 1e300]), "not numbers"),
        (np.array([0.1, -1e20]), "beyond 1e.12"),
        (np.zeros((2, 5), dtype=np.float32), "shape"),
        (np.zeros(5, dtype=np.int16), "int16"),
    ):
        with pytest.raises(UserError, match=message):
            recognizer.accept(bad)
    recognizer.accept(samples[30000:])
    assert recognizer.finish().text == wanted


@pytest.mark.parametrize("kind", ["raw_model", "fbank_model"])
@pytest.mark.parametrize("length", [0, 1, 100, 256, 257, 399, 400, 2000])
def test_recordings_of_almost_nothing(kind, length, request):
    model = request.getfixturevalue(kind)
    recognizer = StreamingRecognizer(*model)
    samples = make_audio(length / RATE)
    recognizer.accept(samples)
    assert recognizer.finish().text == offline(model, samples, 2)[0]


def test_models_that_cannot_stream_say_why(tmp_path):
    frontend = {"fs": "16k", "hop_length": 160}
    for number, (encoder, options, message) in enumerate(
        [
            ({"bidirectional": True}, {}, "bidirectional"),
            ({"attention_context": None}, {}, "attention_context"),
            ({}, {"normalize": "utterance_mvn", "normalize_conf": {}}, "global_mvn"),
            ({}, {"frontend_conf": {**frontend, "frontend_conf": {"use_wpe": True}}}, "reverberation"),
            ({}, {"input_size": 40}, "40 features a frame"),
            (None, {"encoder": "rnn", "encoder_conf": {"hidden_size": 8}}, "RNNEncoder"),
        ]
    ):
        model = write_model(tmp_path / str(number), encoder, **{"frontend_conf": frontend, **options})
        with pytest.raises(UserError, match=f"this (model|encoder) .*{message}") as error:
            StreamingRecognizer(*model)
        assert "\n" not in str(error.value)


def test_a_chunk_of_nothing_is_refused(fbank_model):
    with pytest.raises(UserError, match="a chunk of 0 s"):
        StreamingRecognizer(*fbank_model, chunk_seconds=0)


class Spelling:
    """Tokens and their spelling as `GreedyDecoder` has them."""

    def __init__(self, tokens: list[str], token_type: str):
        from espnet2.text.build_tokenizer import build_tokenizer
        from espnet2.text.token_id_converter import TokenIDConverter

        self.tokenizer = build_tokenizer(token_type)
        self.converter = TokenIDConverter(tokens)
        self.sos_eos = len(tokens) - 1

    text = GreedyDecoder.text


@pytest.mark.parametrize(
    ("token_type", "tokens", "ids", "stable", "text"),
    [
        ("char", LETTERS, [3, 3, 0, 3, 2, 4, 0], "AA", "AA B"),
        ("char", LETTERS, [3, 0, 2, 2], "A", "A"),
        ("char", ["<blank>", "<unk>", "語", "言", "<sos/eos>"], [2, 0, 3, 3], "語言", "語言"),
        ("word", ["<blank>", "<unk>", "YES", "NO", "<sos/eos>"], [2, 0, 3, 4, 3], "YES NO NO", "YES NO NO"),
    ],
)
def test_the_last_word_is_not_stable(token_type, tokens, ids, stable, text):
    for size in (1, 2, len(ids)):
        greedy = GreedyText(Spelling(tokens, token_type))
        for begin in range(0, len(ids), size):
            greedy.accept(ids[begin : begin + size])
        assert (greedy.stable, greedy.text()) == (stable, text)
        greedy.finish()
        assert greedy.stable == text


def test_memory_does_not_grow_with_the_recording(fbank_model):
    def tensors(value) -> int:
        if isinstance(value, torch.Tensor):
            return value.untyped_storage().nbytes()
        return sum(map(tensors, value)) if isinstance(value, tuple) else 0

    recognizer = StreamingRecognizer(*fbank_model)
    sizes = []
    for _ in range(8):
        recognizer.accept(make_audio(3.2))
        sizes.append(
            tensors(recognizer._state)
            + tensors(recognizer._features._framing.samples)
            + sum(piece.nbytes for piece in recognizer._waiting)
        )
    assert len(set(sizes[1:])) == 1 and sizes[-1] < 100_000
