"""`model: mixspeech` for ESPnet: CTC of utterances, some of which are heard through another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor
from torch.nn import functional as F

from espnet_lmu.lmu.naive import valid_frames


class Mixture(NamedTuple):
    """Which utterance each of a batch is mixed with, (B,), and its own share of the sum, (B,): 1 for all of it."""

    other: Tensor
    share: Tensor


def draw_mixture(batch: int, rate: float, alpha: float, device: torch.device) -> Mixture:
    """Pairs of utterances of a batch, of which `rate` are mixed.

    The share of either in a pair is drawn from Beta(alpha, alpha); the larger one is the utterance's own.
    """
    other = torch.randperm(batch)
    share = torch.distributions.Beta(alpha, alpha).sample((batch,))
    share = torch.maximum(share, 1 - share)
    alone = (torch.rand(batch) >= rate) | (other == torch.arange(batch))
    return Mixture(other.to(device), share.masked_fill(alone, 1.0).to(device))


def mix(x: Tensor, lengths: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Weighted sums of pairs of utterances, as long as the longer one of a pair.

    What is mixed is how each differs from its own mean over time, so that an utterance that has ended, and its padding,
    add nothing; the mean stays the first one's.

    Args:
        x: (B, T, F) log filterbanks.
        lengths: (B,) frames of each.

    Returns: the same shapes; utterances that are not mixed, padding included, as they were.
    """
    other, share = mixture
    valid = valid_frames(lengths.to(x.device), x.size(1))[:, :, None]
    clean = x.masked_fill(~valid, 0.0)
    mean = clean.sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    difference = (clean - mean).masked_fill(~valid, 0.0)
    mixed = share < 1
    weight = share.to(x.dtype)[:, None, None]
    sums = mean + weight * difference + (1 - weight) * difference[other]
    lengths = torch.where(mixed.to(lengths.device), torch.maximum(lengths, lengths[other.to(lengths.device)]), lengths)
    return torch.where(mixed[:, None, None], sums, x), lengths


class MixSpeechASRModel(ESPnetASRModel):
    """ESPnet's ASR model of CTC alone, with MixSpeech while it trains.

    Meng et al. 2021, "MixSpeech: data augmentation for low-resource automatic speech recognition": some utterances
    become a weighted sum of two, whose loss is the same sum of the losses of both texts. The features are mixed before
    SpecAugment. Validation, decoding and the trained model are those of `model: espnet`.

    Args:
        mix_rate: share of the utterances that are mixed.
        mix_alpha: of the distribution of the shares in a pair, Beta(mix_alpha, mix_alpha); the smaller, the more do
            pairs consist of one utterance nearly alone.
        others: as ESPnetASRModel.

    Raises:
        ValueError: a rate or alpha out of its range, or a model with a decoder or another CTC than torch's.
    """

    def __init__(self, *args, mix_rate: float = 0.3, mix_alpha: float = 0.5, **others):
        for name, value, most in (("mix_rate", mix_rate, 1.0), ("mix_alpha", mix_alpha, float("inf"))):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                raise ValueError(f"{name} {value!r}: give a number above 0" + (" and up to 1" if most == 1 else ""))
        if others.get("ctc_weight") != 1.0 or others.get("joint_network") is not None:
            raise ValueError("model mixspeech trains CTC alone: set ctc_weight: 1.0 and no decoder")
        super().__init__(*args, **others)
        if self.ctc.ctc_type != "builtin":
            raise ValueError(f"model mixspeech has torch's CTC alone, not ctc_type {self.ctc.ctc_type}")
        self.mix_rate, self.mix_alpha = mix_rate, mix_alpha
        self._mixture: Mixture | None = None  # of the batch that is trained on

    def forward(self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **others):
        """As ESPnetASRModel; in training, of the mixed utterances."""
        if self.training:
            self._mixture = draw_mixture(len(speech), self.mix_rate, self.mix_alpha, speech.device)
        try:
            return super().forward(speech, speech_lengths, text, text_lengths, **others)
        finally:
            self._mixture = None

    def _extract_feats(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = super()._extract_feats(speech, speech_lengths)
        return (x, lengths) if self._mixture is None else mix(x, lengths, self._mixture)

    def _calc_ctc_loss(self, encoder_out: Tensor, encoder_out_lens: Tensor, ys_pad: Tensor, ys_pad_lens: Tensor):
        if self._mixture is None:
            return super()._calc_ctc_loss(encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)
        logits = self.ctc.ctc_lo(F.dropout(encoder_out, p=self.ctc.dropout_rate))
        log_probs = logits.log_softmax(2).float().transpose(0, 1)  # (T, B, V)

        def losses(rows: Tensor, texts: Tensor) -> Tensor:
            targets = torch.cat([ys_pad[text, : ys_pad_lens[text]] for text in texts])
            return self.ctc.ctc_loss(log_probs[:, rows], targets, encoder_out_lens[rows], ys_pad_lens[texts])

        other, share = self._mixture
        everyone = torch.arange(len(share), device=share.device)
        total = (share * losses(everyone, everyone)).sum()
        mixed = (share < 1).nonzero()[:, 0]
        if len(mixed):
            total = total + ((1 - share[mixed]) * losses(mixed, other[mixed])).sum()
        return total / len(share), None
