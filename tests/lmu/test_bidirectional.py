"""Two directions in time."""

import pytest
import torch
from lmu_agreement import assert_agree

from espnet_lmu.lmu import LMU, Bidirectional, GeneralLMU, ParallelLMU
from espnet_lmu.lmu.bidirectional import reverse_sequences


@pytest.mark.parametrize("layer_type", [LMU, ParallelLMU, GeneralLMU])
def test_padding_never_changes_a_result(layer_type):
    torch.manual_seed(0)
    layer = Bidirectional(layer_type(3, 4, 5, 9.0), layer_type(3, 4, 5, 9.0))
    x, lengths = torch.randn(3, 8, 3), torch.tensor([8, 5, 1])
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    y, _ = layer(x, lengths)
    assert y.shape == (3, 8, 8)
    for row, length in enumerate(lengths):
        alone = x[row : row + 1, :length]
        expected = torch.cat([layer.forward_layer(alone)[0], layer.backward_layer(alone.flip(1))[0].flip(1)], -1)
        assert_agree(y[row : row + 1, :length], expected)
        assert_agree(layer(alone)[0], expected)
        assert not y[row, length:].any()


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="input sizes differ: 3 and 4"):
        Bidirectional(LMU(3, 4, 5, 9.0), LMU(4, 4, 5, 9.0))


def test_each_direction_has_its_state():
    torch.manual_seed(0)
    layer = Bidirectional(LMU(3, 4, 5, 9.0), LMU(3, 4, 5, 9.0))
    x, lengths = torch.randn(2, 6, 3), torch.tensor([6, 4])
    state = tuple((torch.randn(2, 4), torch.randn(2, 5)) for _ in range(2))
    y, (forward_state, backward_state) = layer(x, lengths, state)
    forward_y, expected = layer.forward_layer(x, lengths, state[0])
    assert_agree(y[..., :4], forward_y)
    assert_agree(forward_state[1], expected[1])
    backward_y, expected = layer.backward_layer(reverse_sequences(x, lengths), lengths, state[1])
    assert_agree(reverse_sequences(y[..., 4:], lengths), backward_y)
    assert_agree(backward_state[1], expected[1])


def test_a_sequence_is_turned_around_within_its_length():
    x = torch.arange(5.0).repeat(2, 1)[..., None]
    reversed_x = reverse_sequences(x, torch.tensor([5, 3]))[..., 0]
    assert reversed_x.tolist() == [[4, 3, 2, 1, 0], [2, 1, 0, 3, 4]]
    assert torch.equal(reverse_sequences(x, None), x.flip(1))


def test_lengths_may_lie_on_the_cpu():
    assert reverse_sequences(torch.empty(2, 6, 3, device="meta"), torch.tensor([6, 4])).shape == (2, 6, 3)
