"""Dropout: what it drops, how it scales, and when it does nothing."""

import pytest
import torch

from espnet_lmu.encoder.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_drops_and_scales(rate, dtype):
    torch.manual_seed(0)
    x = torch.ones(7, 1001, 13, dtype=dtype, requires_grad=True)
    y = Dropout(rate)(x)
    assert y.dtype == dtype and (y == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert y.float().mean().item() == pytest.approx(1, abs=0.01)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y)
    # each of a number's eight bytes, and so each element, is dropped as often as the others
    by_byte = (y == 0).flatten()[: y.numel() // 8 * 8].view(-1, 8).float().mean(0)
    assert (by_byte - rate).abs().max() < 0.02


def test_it_follows_the_seed():
    x, dropout = torch.ones(1000), Dropout(0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("dropout", [Dropout(0.0), Dropout(0.3).eval()])
def test_it_does_nothing(dropout):
    x = torch.randn(3, 5)
    assert torch.equal(dropout(x), x)


def test_everything_is_dropped_at_1_and_an_empty_input_passes():
    assert not Dropout(1.0)(torch.ones(9)).any()
    assert Dropout(0.3)(torch.ones(0, 4)).shape == (0, 4)
