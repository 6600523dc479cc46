"""`model: cr_ctc` for ESPnet: CTC with consistency regularisation."""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor
from torch.nn import functional as F

from espnet_lmu.lmu.naive import valid_frames


class CRCTCModel(ESPnetASRModel):
    """ESPnet's model, trained with CR-CTC (Yao et al. 2024, "CR-CTC: Consistency regularization on CTC for improved
    speech recognition", eq. 5 to 7).

    Every utterance of a training batch goes through SpecAugment and the encoder twice, and the CTC posteriors of each
    pass are a target of the other's:

        loss = (CTC(a) + CTC(b)) / 2 + cr_weight / 2 * sum over frames of [KL(b || a) + KL(a || b)]

    with no gradient into the targets. A batch thus costs as much as two; half the epochs are the same training time.
    SpecAugment must not warp the time axis, because both passes' frames must match.

    Args:
        cr_weight: weight of the consistency.
        All other options are those of ESPnet's model.

    Raises:
        ValueError: no SpecAugment, one with time warping, or a model without CTC.
    """

    def __init__(self, *args, cr_weight: float = 0.2, **kwargs):
        super().__init__(*args, **kwargs)
        if self.specaug is None or getattr(self.specaug, "time_warp", None) is not None:
            raise ValueError("model cr_ctc needs specaug with apply_time_warp: false: it compares frame by frame")
        if self.ctc is None:
            raise ValueError("model cr_ctc needs ctc_weight above 0")
        self.cr_weight = cr_weight

    def forward(self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **kwargs):
        """As ESPnet's: speech (B, T, ...), its lengths (B,), text (B, L), its lengths (B,) -> loss, stats, weight."""
        if self.training:
            speech, speech_lengths, text, text_lengths = map(_twice, (speech, speech_lengths, text, text_lengths))
            kwargs = {name: _twice(value) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        return super().forward(speech, speech_lengths, text, text_lengths, **kwargs)

    def _calc_ctc_loss(self, encoder_out: Tensor, encoder_out_lens: Tensor, ys_pad: Tensor, ys_pad_lens: Tensor):
        # ESPnet calls this for the encoder's output and for each intermediate one.
        loss, cer = super()._calc_ctc_loss(encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)
        if self.training:
            loss = loss + self.cr_weight * consistency(self.ctc.log_softmax(encoder_out), encoder_out_lens)
        return loss, cer


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def consistency(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Mean over utterances of half the symmetric KL divergence between the two halves of a batch.

    Args:
        log_probs: (2 B, T, V), the second half being other views of the first.
        lengths: valid frames, (2 B,).

    Returns:
        A scalar; each side learns from the other, not from itself.
    """
    first, second = log_probs.chunk(2)
    divergence = F.kl_div(first, second.detach(), reduction="none", log_target=True)
    divergence = divergence + F.kl_div(second, first.detach(), reduction="none", log_target=True)
    valid = valid_frames(lengths.to(log_probs.device).chunk(2)[0], first.size(1))
    return divergence.masked_fill(~valid[..., None], 0.0).sum() / (2 * len(first))
