"""Models that ESPnet built, from experiment to packed file to text, with the features that they were trained on."""

import shutil
from argparse import Namespace
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml
from weights import draw_weights

import espnet_lmu
from espnet_lmu.bin.main import main
from espnet_lmu.data.audio import read_audio, resample
from espnet_lmu.data.features import read_features
from espnet_lmu.data.format import feature_settings, format_data_dir
from espnet_lmu.data.kaldi_dir import read_table, write_data_dir
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.model_files import open_model
from espnet_lmu.recognition.pack import pack

RATE = 16000
AN4 = Path(__file__).resolve().parents[2] / "egs/an4/asr1"
AN4_EXPERIMENT = AN4 / "exp/asr_train_asr_fbank_en_bpe250_sp"


def _build(recipe: Path, feats_type: str) -> Path:
    """An experiment with random weights whose posteriors are not all blank."""
    from espnet2.tasks.asr import ASRTask

    recipe.mkdir()
    (recipe / "text").write_text("ONE TWO THREE FOUR FIVE SIX SEVEN\n" * 3)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(recipe / "text"), vocab_size=20, model_prefix=str(recipe / "bpe"), hard_vocab_limit=False
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(recipe / "bpe.model"))
    tokens = ["<blank>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces))), "<sos/eos>"]
    np.savez(recipe / "feats_stats.npz", count=10, sum=np.full(80, 30.0), sum_square=np.full(80, 300.0))
    config = ASRTask.get_default_config() | {
        "output_dir": "exp/asr",
        "best_model_criterion": [["valid", "loss", "min"]],
        "token_list": tokens,
        "token_type": "bpe",
        "bpemodel": "bpe.model",
        "encoder": "lmu",
        "encoder_conf": {
            "output_size": 16,
            "num_blocks": 1,
            "memory_size": 8,
            "theta": 8.0,
            "attention_heads": 2,
            "input_layer": "dw_striding",
        },
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(recipe / "feats_stats.npz")},
        "model_conf": {"ctc_weight": 1.0},
    }
    if feats_type == "fbank":
        config["input_size"] = 80
    args = Namespace(**config)
    torch.manual_seed(3)
    model = draw_weights(ASRTask.build_model(args))
    with torch.no_grad():
        model.ctc.ctc_lo.weight *= 20
    experiment = recipe / "exp" / "asr"
    experiment.mkdir(parents=True)
    torch.save(model.state_dict(), experiment / "valid.loss.ave.pth")
    config = vars(args) | {"normalize_conf": {"stats_file": "feats_stats.npz"}}
    (experiment / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    return experiment


@pytest.fixture(scope="module", params=["fbank", "raw"])
def feats_type(request):
    return request.param


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, feats_type):
    return _build(tmp_path_factory.mktemp("load") / "recipe", feats_type)


@pytest.fixture
def audio(tmp_path):
    noise = np.random.default_rng(0)
    envelope = np.repeat(noise.uniform(0, 0.3, 40), RATE // 10)
    soundfile.write(tmp_path / "a.flac", envelope * noise.standard_normal(len(envelope)), RATE)
    return tmp_path / "a.flac"


def test_packed_model_recognizes_what_the_experiment_does_and_loads_into_espnet(
    experiment, feats_type, audio, tmp_path, monkeypatch
):
    here = espnet_lmu.load_model(experiment).transcribe(audio)
    assert len(here.text) > 5 and here.text == " ".join(word.text for word in here.words)
    assert all(0 <= word.start < word.end <= 4.04 and 0 < word.confidence <= 1 for word in here.words)

    if feats_type == "raw":
        with pytest.raises(UserError, match=f"--fs {2 * RATE}: .* was trained on audio at {RATE} Hz"):
            pack(experiment, tmp_path / "model.zip", None, 2 * RATE, None)
    pack(experiment, tmp_path / "model.zip", None, RATE, None)
    hidden = experiment.parents[1].rename(experiment.parents[1].with_name("hidden"))
    monkeypatch.chdir(tmp_path)
    try:
        assert espnet_lmu.load_model("model.zip").transcribe(audio) == here

        from espnet2.bin.asr_inference import Speech2Text
        from espnet2.main_funcs.pack_funcs import unpack

        speech2text = Speech2Text(**unpack("model.zip", "unpacked"), ctc_weight=1.0, beam_size=1)
        weights = torch.load("unpacked/model.pth", weights_only=True)
        for name, value in speech2text.asr_model.state_dict().items():
            assert torch.allclose(value, weights[name].float()), name
        # the command line, on the same model
        assert main(["transcribe", "model.zip", str(audio), "--nj", "1", "--format", "text", "--output", "out"]) == 0
        assert Path("out/a.txt").read_text() == here.text + "\n"
    finally:
        hidden.rename(experiment.parents[1])


def test_features_of_audio_are_those_that_stage_3_stores(experiment, feats_type, audio, tmp_path):
    recognizer = espnet_lmu.load_model(experiment)
    samples, rate = read_audio(audio)
    if feats_type == "raw":
        assert recognizer._input(samples, rate) is samples
        return
    write_data_dir(tmp_path / "data", {"wav.scp": {"u": str(audio)}, "text": {"u": "ONE"}, "utt2spk": {"u": "u"}})
    format_data_dir(tmp_path / "data", tmp_path / "dump", "fbank", RATE, nj=1)
    stored = kaldiio.load_mat(read_table(tmp_path / "dump/feats.scp")["u"])
    features = recognizer._input(samples, rate)
    assert features.shape == stored.shape
    # stored with 8 bits a value
    assert np.abs(features - stored).max() < (stored.max() - stored.min()) / 100
    twice = resample(samples, rate, 2 * rate)
    assert recognizer._input(twice, 2 * rate).shape == features.shape


def test_weights_that_would_run_code_do_not(experiment, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    copy = tmp_path / "copy"
    shutil.copytree(experiment.parents[1], copy)
    torch.save({"a": Evil()}, copy / "exp/asr/valid.loss.ave.pth")
    pack(copy / "exp/asr", tmp_path / "evil.zip", None, RATE, None)
    for model in (copy / "exp/asr", tmp_path / "evil.zip"):
        open_model(model)
        with pytest.raises(UserError, match="not the weights of a model"):
            espnet_lmu.load_model(model)
    assert not (tmp_path / "ran").exists()


def test_command_line_goes_on_after_a_broken_file(experiment, audio, tmp_path, capsys):
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    arguments = ["transcribe", str(experiment), str(tmp_path / "b.wav"), str(audio), "--nj", "1"]
    assert main([*arguments, "--format", "ctm"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{audio} 1 ")
    first, last = printed.err.splitlines()[-2:]
    assert first.startswith(f"error: {tmp_path}/b.wav: not readable audio")
    assert last == "error: 1 of 2 recordings could not be transcribed"
    assert main([*arguments, "--format", "srt"]) == 1
    assert "error: --format srt: subtitles of 2 recordings need --output DIR" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "b.wav")]) == 1
    assert capsys.readouterr().err == f"error: --output {tmp_path}/b.wav: a file; give a folder\n"


@pytest.mark.skipif(
    read_features(AN4_EXPERIMENT) != feature_settings(RATE),
    reason="no AN4 model trained here, on the features of this version: egs/an4/asr1/run.sh",
)
def test_text_of_audio_is_that_of_stage_12():
    (decoded,) = AN4_EXPERIMENT.glob("decode_*greedy*/test/text")
    expected, recordings = read_table(decoded), read_table(AN4 / "data/test/wav.scp")
    transcripts = espnet_lmu.load_model(AN4_EXPERIMENT).transcribe([str(AN4 / path) for path in recordings.values()])
    texts = {key: transcript.text for key, transcript in zip(recordings, transcripts, strict=True)}
    # the stored features have 8 bits a value
    assert sum(texts[key] != expected[key] for key in expected) <= 1
