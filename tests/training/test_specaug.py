"""Vocal tract length perturbation in front of SpecAugment."""

import pytest
import torch

from espnet_lmu.training.specaug import VTLPSpecAug, stretch_bands


def test_stretching_moves_a_formant_by_the_factor():
    x = torch.zeros(3, 4, 80)
    x[:, :, 40] = 1.0
    stretched = stretch_bands(x, torch.tensor([[1.0], [0.8], [1.25]]))
    assert stretched.argmax(2).tolist() == [[40] * 4, [50] * 4, [32] * 4]
    torch.testing.assert_close(stretched[0], x[0])


def test_bands_beyond_the_end_repeat_the_last_one():
    x = torch.arange(10.0).expand(1, 1, 10)
    torch.testing.assert_close(stretch_bands(x, torch.tensor([[2.0]]))[0, 0], (2 * torch.arange(10.0)).clamp(max=9))
    torch.testing.assert_close(stretch_bands(x[..., :1], torch.tensor([[2.0]])), x[..., :1])


def test_every_utterance_is_stretched_and_masked_anew():
    torch.manual_seed(0)
    options = {"apply_time_warp": False, "apply_freq_mask": False, "time_mask_width_range": [3, 4], "num_time_mask": 1}
    specaug = VTLPSpecAug([0.8, 1.2], **options)
    x = torch.rand(1, 1, 40).expand(2, 20, 40)
    y, lengths = specaug(x, torch.tensor([20, 20]))
    assert y.shape == x.shape and lengths.tolist() == [20, 20]
    assert not torch.equal(y[0], y[1])
    assert all((row == 0).all(-1).sum() == 3 for row in y)


@pytest.mark.parametrize("vtlp_range", [[1.1, 0.9], [0.0, 1.0], 1.0, [0.9], ["a", "b"]])
def test_impossible_range(vtlp_range):
    with pytest.raises(ValueError, match="vtlp_range"):
        VTLPSpecAug(vtlp_range)
