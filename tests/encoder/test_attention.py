"""Self-attention of limited context against attention to all frames under the mask that defines it."""

import pytest
import torch
from torch.nn import functional as F
from weights import draw_weights

import espnet_lmu.encoder.attention as attention_module
from espnet_lmu import LMUEncoder
from espnet_lmu.encoder.attention import SelfAttention, rotate


def reference(attention: SelfAttention, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The definition: a frame attends to its chunk and the `left` frames before that chunk, none of them padding."""
    left, chunk = attention.context
    frames = torch.arange(x.shape[1])
    begin = frames // chunk * chunk
    near = (frames >= begin[:, None] - left) & (frames < begin[:, None] + chunk)
    outputs = []
    for row, length in zip(x, lengths, strict=True):
        row = attention.norm(row[None, :length])
        query, key, value = (attention._split(p(row)) for p in (attention.query, attention.key, attention.value))
        query, key = rotate(query, frames[:length]), rotate(key, frames[:length])
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=near[:length, :length])
        outputs.append(F.pad(attention.out(out.transpose(1, 2).flatten(2))[0], (0, 0, 0, x.shape[1] - length)))
    return torch.stack(outputs)


@pytest.mark.parametrize("context", [(0, 1), (0, 5), (3, 4), (4, 4), (9, 4), (64, 16), (1, 100)])
@pytest.mark.parametrize("frames", [1, 4, 37])
@pytest.mark.parametrize("plain", [False, True])
def test_limited_context_is_full_attention_under_its_mask(context, frames, plain, monkeypatch):
    monkeypatch.setattr(attention_module, "fast_products_in_use", lambda: plain)  # plain products, or torch's kernel
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, context=context).double()
    x = torch.randn(3, frames, 16, dtype=torch.float64, requires_grad=True)
    lengths = [frames, max(1, frames - 6), 1]
    valid = torch.arange(frames) < torch.tensor(lengths)[:, None]
    wanted = reference(attention, x, lengths)
    found = attention(x, valid).masked_fill(~valid[..., None], 0)
    assert torch.allclose(found, wanted, atol=1e-12)
    inputs = [x, *attention.parameters()]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)
    whole = attention(x[:1], None)
    assert torch.allclose(whole, found[:1], atol=1e-12)


@pytest.mark.parametrize("context", [(-1, 4), (4, 0), (4,)])
def test_impossible_context_is_refused(context):
    with pytest.raises(ValueError, match="attention_context"):
        SelfAttention(16, 2, context=context)


def test_several_chunk_sizes_are_drawn_in_training():
    """Each training step has the mask of one of the sizes; outside training it is the one that was set."""
    options = {"output_size": 16, "num_blocks": 2, "memory_size": 6, "theta": 12.0, "attention_heads": 2}
    torch.manual_seed(0)
    encoder = draw_weights(LMUEncoder(20, attention_context=[3, [2, 5, 100]], dropout_rate=0.0, **options))
    x, lengths = torch.randn(2, 31, 20), torch.tensor([31, 22])
    wanted = []
    for chunk in (2, 5, 100):
        single = LMUEncoder(20, attention_context=[3, chunk], dropout_rate=0.0, **options)
        single.load_state_dict(encoder.state_dict())
        wanted.append(single(x, lengths)[0])
        encoder.eval().attention_chunk = chunk
        torch.testing.assert_close(encoder(x, lengths)[0], wanted[-1])
    encoder.train()
    outputs = [encoder(x, lengths)[0] for _ in range(30)]
    matches = [[torch.allclose(out, other, atol=1e-5) for other in wanted] for out in outputs]
    assert all(sum(row) == 1 for row in matches)
    assert all(sum(column) >= 3 for column in zip(*matches, strict=True))


@pytest.mark.parametrize("context", [[4, []], [4, [8, 0]], [-1, [8, 4]], [4], [4, 8, 8]])
def test_impossible_chunk_sizes_are_refused(context):
    with pytest.raises(ValueError, match="attention_context"):
        LMUEncoder(20, output_size=16, num_blocks=1, memory_size=6, attention_heads=2, attention_context=context)
