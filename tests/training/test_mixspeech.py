"""MixSpeech: sums of utterances, with the same sums of their losses."""

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.layers.utterance_mvn import UtteranceMVN

import espnet_lmu
from espnet_lmu.training.mixspeech import MixSpeechASRModel, Mixture, draw_mixture, mix

PARTS = ("frontend", "specaug", "preencoder", "postencoder", "decoder", "joint_network")
TOKENS = ["<blank>", "<unk>", "A", "B", "C", "<sos/eos>"]


def make_model(**conf) -> MixSpeechASRModel:
    torch.manual_seed(0)
    encoder = espnet_lmu.LMUEncoder(
        12, output_size=8, num_blocks=1, memory_size=4, theta=8.0, attention_heads=2, dropout_rate=0.0
    )
    return MixSpeechASRModel(
        len(TOKENS),
        TOKENS,
        **dict.fromkeys(PARTS),
        encoder=encoder,
        normalize=UtteranceMVN(),
        ctc=CTC(len(TOKENS), 8),
        **{"ctc_weight": 1.0, **conf},
    )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "speech": torch.randn(3, 20, 12) - 5,
        "speech_lengths": torch.tensor([20, 14, 17]),
        "text": torch.tensor([[2, 3, 4], [4, -1, -1], [3, 2, -1]]),
        "text_lengths": torch.tensor([3, 1, 2]),
    }


def test_a_sum_is_of_what_differs_from_the_mean(batch):
    x, lengths = batch["speech"], batch["speech_lengths"]
    mixture = Mixture(torch.tensor([1, 0, 2]), torch.tensor([0.7, 0.6, 1.0]))
    mixed, mixed_lengths = mix(x, lengths, mixture)
    assert mixed_lengths.tolist() == [20, 20, 17]
    torch.testing.assert_close(mixed[2], x[2])
    means = [row[:length].mean(0) for row, length in zip(x, lengths, strict=True)]
    difference = [torch.zeros(20, 12), torch.zeros(20, 12)]
    for row in range(2):
        difference[row][: lengths[row]] = x[row, : lengths[row]] - means[row]
    torch.testing.assert_close(mixed[0], means[0] + 0.7 * difference[0] + 0.3 * difference[1])
    torch.testing.assert_close(mixed[1], means[1] + 0.6 * difference[1] + 0.4 * difference[0])


def test_padding_that_is_no_number_reaches_no_sum(batch):
    x, lengths = batch["speech"], batch["speech_lengths"]
    mixture = Mixture(torch.tensor([1, 2, 0]), torch.tensor([0.7, 0.6, 0.9]))
    expected, _ = mix(x, lengths, mixture)
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    torch.testing.assert_close(mix(x, lengths, mixture)[0], expected)


def test_the_rate_and_the_shares_that_are_drawn():
    torch.manual_seed(0)
    other, share = draw_mixture(20_000, rate=0.3, alpha=0.5, device=torch.device("cpu"))
    assert sorted(other.tolist()) == list(range(20_000))
    mixed = share[share < 1]
    assert len(mixed) / len(share) == pytest.approx(0.3, abs=0.02)
    assert mixed.min() >= 0.5
    # of Beta(0.5, 0.5), whose distribution is 2 / pi asin(sqrt(x)), half is in the outer 0.146 on either side
    assert (mixed > 0.8536).float().mean() == pytest.approx(0.5, abs=0.03)
    assert draw_mixture(1, 1.0, 0.5, torch.device("cpu")).share.tolist() == [1.0]


def test_the_loss_is_the_sum_of_both_texts(batch, monkeypatch):
    model = make_model()
    mixture = Mixture(torch.tensor([1, 0, 2]), torch.tensor([0.7, 0.6, 1.0]))
    monkeypatch.setattr("espnet_lmu.training.mixspeech.draw_mixture", lambda *_: mixture)
    loss, statistics, _ = model(**batch)
    assert statistics["cer_ctc"] is None

    model.eval()
    x, lengths = mix(batch["speech"], batch["speech_lengths"], mixture)

    def loss_of(row: int, text: int) -> torch.Tensor:
        n = batch["text_lengths"][text]
        one = (x[row : row + 1], lengths[row : row + 1], batch["text"][text : text + 1, :n], n[None])
        return model(*one)[0]

    expected = [
        0.7 * loss_of(0, 0) + 0.3 * loss_of(0, 1),
        0.6 * loss_of(1, 1) + 0.4 * loss_of(1, 0),
        loss_of(2, 2),
    ]
    torch.testing.assert_close(loss, sum(expected) / 3)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_evaluation_mixes_nothing(batch):
    model = make_model(mix_rate=1.0).eval()
    loss, statistics, _ = model(**batch)
    alone = [model(*(value[i : i + 1] for value in batch.values()))[0] for i in range(3)]
    torch.testing.assert_close(loss, sum(alone) / 3)
    assert statistics["cer_ctc"] is not None
    model.train()
    torch.manual_seed(0)
    assert not torch.isclose(model(**batch)[0], loss)


def test_features_for_the_statistics_are_not_mixed(batch):
    model = make_model(mix_rate=1.0).train()
    torch.testing.assert_close(model.collect_feats(**batch)["feats"], batch["speech"])


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"mix_rate": 0.0}, "mix_rate 0.0: give a number above 0 and up to 1"),
        ({"mix_rate": 1.5}, "mix_rate 1.5"),
        ({"mix_alpha": "a"}, "mix_alpha 'a': give a number above 0$"),
        ({"ctc_weight": 0.3}, "trains CTC alone"),
    ],
)
def test_impossible_settings(conf, message):
    with pytest.raises(ValueError, match=message):
        make_model(**conf)


def test_intermediate_ctc_is_mixed_as_the_last_one_is(batch):
    model = make_model(interctc_weight=0.5)
    model.encoder.interctc_layer_idx = [1]
    loss, statistics, _ = model(**batch)
    torch.testing.assert_close(statistics["loss_interctc_layer1"], statistics["loss_ctc"])
