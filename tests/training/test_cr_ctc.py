"""Consistency-regularised CTC: the loss, and that it trains through ESPnet's task."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask

import espnet_lmu  # noqa: F401  (registers)
from espnet_lmu.training.cr_ctc import CRCTCModel, consistency

NO_WARP = ["apply_time_warp=false", "time_mask_width_range=[0,4]"]


def build(tmp_path, specaug=NO_WARP, **model_conf) -> CRCTCModel:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("<blank>\n<unk>\nA\nB\n<space>\n<sos/eos>\n")
    options = ["output_size=8", "num_blocks=2", "memory_size=4", "theta=8.0", "attention_heads=2", "dropout_rate=0.0"]
    options += ["interctc_layer_idx=[1]"]
    arguments = ["--token_list", str(tokens), "--token_type", "char", "--input_size", "10", "--decoder", "none"]
    arguments += ["--encoder", "lmu", "--model", "cr_ctc", "--output_dir", str(tmp_path / "exp")]
    for name, values in (("encoder", options), ("specaug", specaug)):
        arguments += [word for value in values for word in (f"--{name}_conf", value)]
    arguments += ["--specaug", "specaug"] if specaug else []
    for name, value in {"ctc_weight": 1.0, **model_conf}.items():
        arguments += ["--model_conf", f"{name}={value}"]
    torch.manual_seed(0)
    return ASRTask.build_model(ASRTask.get_parser().parse_args(arguments))


BATCH = {
    "speech": torch.randn(2, 30, 10),
    "speech_lengths": torch.tensor([30, 20]),
    "text": torch.tensor([[2, 3, 4, 2], [3, 2, -1, -1]]),
    "text_lengths": torch.tensor([4, 2]),
    "utt_id": ["a", "b"],
}


def batch() -> dict:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in BATCH.items()}


def test_consistency_is_half_the_symmetric_divergence_over_valid_frames():
    torch.manual_seed(0)
    log_probs = torch.randn(4, 5, 3).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([5, 2, 5, 2])
    expected = sum(
        (p.exp() * (p - q) + q.exp() * (q - p)).sum() / 2
        for i, length in enumerate([5, 2])
        for p, q in [(log_probs[i, :length], log_probs[i + 2, :length])]
    )
    value = consistency(log_probs, lengths)
    torch.testing.assert_close(value, expected / 2)
    value.backward()
    assert log_probs.grad[0].any() and log_probs.grad[2].any() and not log_probs.grad[1, 2:].any()
    assert consistency(torch.cat([log_probs[:2]] * 2), lengths) == 0


def test_equal_views_give_plain_ctc(tmp_path):
    """SpecAugment that masks nothing makes both views equal."""
    no_masks = ["apply_time_warp=false", "apply_freq_mask=false", "time_mask_width_range=[0,1]"]
    model = build(tmp_path, no_masks).train()
    loss, stats, weight = model(**batch())
    assert weight == 4
    model.eval()
    plain, _, weight = model(**batch())
    assert weight == 2
    torch.testing.assert_close(loss, plain)


def test_the_views_differ_and_the_difference_is_in_the_loss(tmp_path):
    losses = []
    for weight in (0.0, 0.5):
        model = build(tmp_path, cr_weight=weight).train()
        torch.manual_seed(1)
        loss, _, _ = model(**batch())
        loss.backward()
        losses.append(loss.item())
    assert losses[1] > losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("specaug", "model_conf", "message"),
    [
        ([], {}, "needs specaug with apply_time_warp: false"),
        (["apply_time_warp=true", "time_mask_width_range=[0,4]"], {}, "apply_time_warp: false"),
    ],
)
def test_settings_that_cannot_work(tmp_path, specaug, model_conf, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, specaug, **model_conf)
