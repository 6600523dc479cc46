"""ESPnet's own asr_inference_streaming with the encoder, unmodified."""

import numpy as np
import pytest
import soundfile
import torch
from streaming_tools import RATE, make_audio

from espnet_lmu.data.kaldi_dir import read_table, write_table
from espnet_lmu.decoding.model import load_asr_model

OPTIONS = {"ctc_weight": 1.0, "beam_size": 3}


@pytest.fixture(scope="module")
def speech2text(raw_model):
    from espnet2.bin.asr_inference_streaming import Speech2TextStreaming

    return Speech2TextStreaming(*map(str, raw_model), **OPTIONS)


@pytest.mark.parametrize("size", [800, 2560, 6400, 48000])
def test_its_encoder_outputs_are_those_of_the_whole_recording(raw_model, speech2text, size, monkeypatch):
    samples = make_audio(4)
    model, _ = load_asr_model(*raw_model)
    model.encoder.attention_chunk = model.encoder.streaming_chunk
    with torch.no_grad():
        wanted, _ = model.encode(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    heard, search = [], speech2text.beam_search.forward

    def listen(x: torch.Tensor, **options):
        heard.append(x)
        return search(x, **options)

    monkeypatch.setattr(speech2text.beam_search, "forward", listen)
    for begin in range(0, len(samples), size):
        results = speech2text(samples[begin : begin + size], is_final=begin + size >= len(samples))
    torch.testing.assert_close(torch.cat(heard), wanted[0], rtol=0, atol=1e-5)
    assert len(results[0][0]) > 5
    assert results[0][0] == speech2text(samples, is_final=True)[0][0]


def test_its_command(raw_model, tmp_path):
    from espnet2.bin.asr_inference_streaming import main

    keys = ["a", "b"]
    for seed, key in enumerate(keys):
        soundfile.write(tmp_path / f"{key}.wav", make_audio(2.5, seed), RATE)
    write_table(tmp_path / "wav.scp", {key: str(tmp_path / f"{key}.wav") for key in keys})
    options = {
        "output_dir": tmp_path / "out",
        "data_path_and_name_and_type": f"{tmp_path}/wav.scp,speech,sound",
        "asr_train_config": raw_model[0],
        "asr_model_file": raw_model[1],
        "sim_chunk_length": 1600,
        "log_level": "ERROR",
        **OPTIONS,
    }
    main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    texts = read_table(tmp_path / "out" / "1best_recog" / "text")
    assert list(texts) == keys and all(len(text) > 5 for text in texts.values())
    assert np.unique(list(texts.values())).size == 2
