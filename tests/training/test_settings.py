"""The settings that recipes have: those for smaller GPUs take the same steps, all build, streaming ones stream."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_lmu.encoder.parameters import build_encoder
from espnet_lmu.encoder.streaming import check_streamable
from espnet_lmu.errors import UserError
from espnet_lmu.training.settings import _check_inference, _check_inference_model, check_training

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FILES = [*CONF.rglob("*.yaml"), *ROOT.glob("egs/*/asr1/conf/**/*.yaml")]
ENCODERS = sorted(path for path in FILES if yaml.safe_load(path.read_text()).get("encoder") == "lmu")


@pytest.mark.parametrize("name, smaller", [("demo", "demo_4gb"), ("base", "base_8gb"), ("large", "large_16gb")])
def test_a_smaller_gpu_takes_the_same_steps(name, smaller):
    settings, other = (yaml.safe_load((CONF / f"train_asr_lmu_{n}.yaml").read_text()) for n in (name, smaller))
    bins = [config.pop("batch_bins") for config in (settings, other)]
    step = [number * config.pop("accum_grad") for number, config in zip(bins, (settings, other), strict=True)]
    assert settings == other
    assert step[0] == step[1] and bins[1] < bins[0]


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_encoder_builds(path):
    encoder, _ = build_encoder(path)
    if "streaming" in path.name:
        check_streamable(encoder)
        assert encoder.streaming_chunk == 8 and encoder.attention_chunk == 1000


def test_files_are_found():
    assert {path.parent.name for path in ENCODERS} == {"conf", "encoders", "ablation"}
    assert sum("streaming" in path.name for path in ENCODERS) == 4


TRAINING = """\
encoder: lmu
encoder_conf: {output_size: 16, num_blocks: 1, memory_size: 8, theta: 8, attention_heads: 2}
model_conf: {ctc_weight: 1.0}
specaug: specaug
specaug_conf: {num_freq_mask: 1, time_mask_width_range: 10}
optim: muon
optim_conf: {lr: 0.002}
exclude_weight_decay: true
scheduler: warmuplr
scheduler_conf: {warmup_steps: 100}
best_model_criterion: [[valid, cer_ctc, min]]
"""


@pytest.fixture
def training(tmp_path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(TRAINING)
    return path


def test_settings_of_the_recipes_pass():
    for path in [*ENCODERS, *(CONF / "peers").glob("*.yaml")]:
        check_training(["--config", str(path), "--input_size", "80", "--output_dir", "."])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch_tipe: numel", "asr_train: unrecognized arguments: .*batch_tipe"),
        ("optim_conf: {lr: 1e-3}", "lr: 1e-3 is text to YAML, which wants a point in a number: 1.0e-3"),
        ("scheduler_conf: {milestones: [5, 2E4]}", "milestones: 2E4 is text .*: 2.0e4"),
        ("encoder_conf: {block_type: macaron}", "encoder_conf: got an unexpected option 'block_type'"),
        ("frontend_conf: {n_mel: 40}", "frontend_conf: got an unexpected option 'n_mel'"),
        ("specaug_conf: {num_freq_maskk: 2}", "specaug_conf: got an unexpected option 'num_freq_maskk'"),
        ("optim_conf: {lrr: 1.0}", "optim_conf: got an unexpected option 'lrr'"),
        ("scheduler_conf: {warmup: 1}", "scheduler_conf: got an unexpected option 'warmup'"),
        ("keep_nbest_models: 0", "keep_nbest_models 0: give at least 1"),
        ("best_model_criterion: [[valid, acc, max]]", "valid acc max: a training of CTC alone has no acc, but loss, "),
        (
            "best_model_criterion: [[valid, cer_ctcc, min]]",
            "valid cer_ctcc min: a training has no cer_ctcc, but loss, ",
        ),
        (
            "best_model_criterion: [valid, cer_ctc, min]",
            "best_model_criterion valid: give three, such as valid, cer_ctc",
        ),
        ("best_model_criterion: [[valid, cer_ctc]]", "give three, such as valid, cer_ctc, min"),
        ("{patience: 3, early_stopping_criterion: valid}", "early_stopping_criterion valid: give three"),
        ("model_conf: {ctc_weight: one}", "model_conf ctc_weight 'one': give a number from 0 to 1"),
        ("model_conf: {ctc_weight: 2}", "model_conf ctc_weight 2: give a number from 0 to 1"),
        ("model_conf: {ctc_weight: 1.0, interctc: 0.5}", "model_conf: got an unexpected option 'interctc'"),
        ("{model: mixspeech, model_conf: {ctc_weight: 0.3}}", "model_conf: model mixspeech trains CTC alone: set ctc_"),
        ("{model: mixspeech, model_conf: {ctc_weight: 1.0, mix_rate: 2}}", "model_conf: mix_rate 2: give a number abo"),
        ("model: mix", "model 'mix': give one of espnet, "),
        ("encoder: lmuu", "encoder 'lmuu': give one of conformer, .*lmu"),
        ("specaug: cutout", "specaug 'cutout': give one of specaug, vtlp_specaug"),
        ("scheduler: cosine", "scheduler 'cosine': give one of "),
        ("model_conf: {ctc_weight: 0.0}", "valid cer_ctc min: a training has no cer_ctc, but loss, loss_att, acc"),
        ("best_model_criterion: [[valid, loss, least]]", "valid loss least: give train or valid, a name, and min or"),
        ("best_model_criterion: [[train, cer_ctc, min]]", "error rates are of the validation set"),
        ("{patience: 3, early_stopping_criterion: [valid, wer, min]}", "early_stopping_criterion valid wer min: a tra"),
    ],
)
def test_a_mistyped_setting_is_named_with_its_file(line, message, training):
    settings = {**yaml.safe_load(TRAINING), **yaml.safe_load(line)}
    training.write_text(yaml.safe_dump(settings).replace("'1e-3'", "1e-3").replace("'2E4'", "2E4"))
    with pytest.raises(UserError, match=f"{message}.*; correct --asr_args or {training}"):
        check_training(["--config", str(training), "--output_dir", "."])


def test_criteria_of_a_decoder_and_of_intermediate_ctc_pass(training):
    arguments = ["--config", str(training), "--output_dir", ".", "--best_model_criterion"]
    check_training([*arguments, "valid,acc,max", "--model_conf", "ctc_weight=0.3"])
    check_training([*arguments, "valid,cer_interctc_layer3,min"])
    # ESPnet's own, written out: the loss is there, and accuracy does no harm.
    training.write_text(
        TRAINING.replace(
            "[[valid, cer_ctc, min]]", "[[train, loss, min], [valid, loss, min], [train, acc, max], [valid, acc, max]]"
        )
    )
    check_training(["--config", str(training), "--output_dir", "."])
    with pytest.raises(UserError, match="; correct --asr_args$"):
        check_training(["--best_model_criterion", "valid,ac,max", "--output_dir", "."])


def test_a_model_that_training_will_not_make_is_named(training):
    args = check_training(["--config", str(training), "--output_dir", "."])
    for name in ("valid.cer_ctc.ave.pth", "valid.cer_ctc.ave_10best.pth", "valid.cer_ctc.best.pth", "latest.pth"):
        _check_inference_model(name, args)
    with pytest.raises(
        UserError, match="--inference_asr_model valid.acc.ave.pth: .* makes valid.cer_ctc.ave.pth; give"
    ):
        _check_inference_model("valid.acc.ave.pth", args)
    args.keep_nbest_models = 5
    with pytest.raises(UserError, match="valid.cer_ctc.ave_10best.pth: keep_nbest_models is 5"):
        _check_inference_model("valid.cer_ctc.ave_10best.pth", args)


def test_logging_stays_as_it_was(training):
    """ESPnet's Conformer warns as it is made, and ESPnet's training then would have no log."""
    training.write_text("encoder: conformer\nencoder_conf: {output_size: 16, attention_heads: 2, num_blocks: 1}\n")
    command = "import logging, sys; from espnet_lmu.training.settings import check_training; "
    command += "check_training(sys.argv[1:]); print(logging.getLogger().handlers)"
    arguments = ["--config", str(training), "--output_dir", "."]
    result = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_a_mistyped_setting_of_the_search_is_named_before_training(tmp_path):
    config = tmp_path / "decode.yaml"
    config.write_text("beam_size: 2\nctc_weight: 1.0\n")
    _check_inference(config, "--penalty 0.1")
    with pytest.raises(UserError, match=f"unrecognized arguments: --penalti 0.1; correct --inference_args or {config}"):
        _check_inference(config, "--penalti 0.1")
    with pytest.raises(UserError, match="--inference_args --penalty '0: No closing quotation"):
        _check_inference(config, "--penalty '0")
    config.write_text("decoding: greedi\n")
    with pytest.raises(UserError, match="decoding: greedi: give greedy or ctc_beam"):
        _check_inference(config, "")
