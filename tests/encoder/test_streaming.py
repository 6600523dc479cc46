"""The encoder on pieces of a recording against the encoder on the whole recording."""

import random

import pytest
import torch
from espnet2.asr.ctc import CTC
from weights import draw_weights

from espnet_lmu import LMUEncoder
from espnet_lmu.encoder.streaming import EncoderState
from espnet_lmu.encoder.subsampling import INPUT_LAYERS

SMALL = {
    "output_size": 16,
    "num_blocks": 2,
    "memory_size": 6,
    "theta": 12.0,
    "attention_heads": 2,
    "attention_context": [10, 4],
}
VARIANTS = {
    **{f"input={name}": {"input_layer": name} for name in INPUT_LAYERS},
    "parallel": {"lmu_type": "parallel", "memory_d": 2, "input_layer": "dw_striding"},
    "chunks of one frame": {"attention_context": [3, 1]},
    "nothing but the chunk": {"attention_context": [0, 7]},
    "more left than chunk": {"attention_context": [50, 3], "linear_units": 24, "gated_linear_units": True},
    "several chunk sizes": {"attention_context": [8, [2, 16, 8]]},
    "chosen chunk size": {"attention_context": [8, [2, 16, 8]], "block_size": 5},
    "no attention": {"use_attention": False, "input_layer": "dw_striding8"},
}


def make_encoder(**options) -> LMUEncoder:
    torch.manual_seed(0)
    return draw_weights(LMUEncoder(20, **{**SMALL, **options})).eval()


def random_pieces(frames: int, generator: random.Random) -> list[int]:
    """Sizes that add up to `frames`, from 1 to 1000 frames (ten seconds), small ones as likely as large ones."""
    sizes = []
    while frames:
        sizes.append(min(frames, round(10 ** generator.uniform(0, 3))))
        frames -= sizes[-1]
    return sizes


def stream(encoder: LMUEncoder, x: torch.Tensor, sizes: list[int], **options) -> torch.Tensor:
    outputs, state, done = [], None, 0
    for size in sizes:
        is_final = done + size == x.size(1)
        piece, lengths = x[:, done : done + size], torch.full((len(x),), size)
        out, out_lengths, state = encoder(piece, lengths, state, is_final=is_final, infer_mode=True, **options)
        assert out_lengths.tolist() == [out.size(1)] * len(x)
        assert (state is None) == is_final
        outputs.append(out)
        done += size
    return torch.cat(outputs, dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_any_cut_gives_the_output_of_the_whole(options):
    encoder = make_encoder(**options)
    encoder.attention_chunk = encoder.streaming_chunk
    generator = random.Random(0)
    cuts = [random_pieces(generator.randint(30, 1300), generator) for _ in range(4)]
    for sizes in [*cuts, [1] * 61, [80], [79, 1]]:
        x = torch.randn(2, sum(sizes), 20)
        whole, lengths, _ = encoder(x, torch.full((2,), x.size(1)))
        out = stream(encoder, x, sizes)
        assert out.shape == whole.shape
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 5, 300])
def test_another_chunk_size(chunk):
    encoder = make_encoder(attention_context=[8, [2, 16]])
    encoder.attention_chunk = encoder.streaming_chunk = chunk
    x = torch.randn(1, 200, 20)
    whole, _, _ = encoder(x, torch.tensor([200]))
    torch.testing.assert_close(stream(encoder, x, [3, 50, 147]), whole, rtol=0, atol=1e-5)
    encoder.attention_chunk = 16
    assert not torch.allclose(encoder(x, torch.tensor([200]))[0], whole, atol=1e-3)


@torch.inference_mode()
def test_self_conditioned_ctc():
    encoder = make_encoder(interctc_layer_idx=[1], interctc_use_conditioning=True)
    encoder.conditioning_layer = torch.nn.Linear(7, 16)
    ctc = CTC(7, 16)
    x = torch.randn(1, 45, 20)
    (whole, _), _, _ = encoder(x, torch.tensor([45]), ctc=ctc)
    torch.testing.assert_close(stream(encoder, x, [20, 1, 24], ctc=ctc), whole, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="interctc_use_conditioning"):
        stream(encoder, x, [45])


def numbers_in(state) -> int:
    """Numbers that a state keeps in memory."""
    if isinstance(state, torch.Tensor):
        return state.untyped_storage().nbytes() // state.element_size()
    return sum(map(numbers_in, state)) if isinstance(state, tuple) else 0


@torch.inference_mode()
@pytest.mark.parametrize("lmu_type", ["original", "parallel"])
@pytest.mark.parametrize("input_layer", ["dw_striding", "conv2d"])
def test_the_state_does_not_grow(lmu_type, input_layer):
    encoder = make_encoder(lmu_type=lmu_type, input_layer=input_layer)
    state, sizes = None, []
    for _ in range(12):
        _, _, state = encoder(torch.randn(1, 160, 20), torch.tensor([160]), state, is_final=False, infer_mode=True)
        sizes.append(numbers_in(state))
    assert len(set(sizes[1:])) == 1
    # attention: keys and values of 10 frames; input layer: a few frames; less than a chunk of 4 waits
    assert sizes[-1] < 2 * (2 * 10 * 16 + 16 * 7) + 14 * 20 + 3 * 16 + 1


@torch.inference_mode()
def test_long_past_the_positions_that_float32_can_hold():
    """A recording of days goes on as one that has just begun: positions are relative."""
    encoder = make_encoder(use_attention=True)
    x = torch.randn(1, 100, 20)
    _, _, state = encoder(x[:, :60], torch.tensor([60]), None, is_final=False, infer_mode=True)
    late = [
        layer._replace(attention=layer.attention._replace(position=layer.attention.position + 10**9))
        for layer in state.layers
    ]
    late_state = EncoderState(state.input, state.pending, tuple(late))
    now, then = (
        encoder(x[:, 60:], torch.tensor([40]), s, is_final=True, infer_mode=True)[0] for s in (state, late_state)
    )
    torch.testing.assert_close(now, then, rtol=0, atol=1e-2)


@torch.inference_mode()
def test_a_state_can_be_used_twice():
    encoder = make_encoder(input_layer="dw_striding")
    x = torch.randn(1, 90, 20)
    _, _, state = encoder(x[:, :50], torch.tensor([50]), None, is_final=False, infer_mode=True)
    first, second = (encoder(x[:, 50:], torch.tensor([40]), state, is_final=True, infer_mode=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@torch.inference_mode()
@pytest.mark.parametrize("name", INPUT_LAYERS)
def test_a_recording_too_short_has_no_output(name):
    encoder = make_encoder(input_layer=name)
    shortest = encoder.embed.shortest
    assert stream(encoder, torch.randn(1, shortest, 20), [1] * shortest).size(1) == 1
    empty, lengths, _ = encoder(torch.randn(1, shortest - 1, 20), torch.tensor([shortest - 1]), infer_mode=True)
    assert empty.shape == (1, 0, 16) and lengths.tolist() == [0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bidirectional": True}, "bidirectional"),
        ({"attention_context": None}, r"attention_context: \[left, chunk\]"),
        ({"use_cross_attention": True}, "use_cross_attention"),
    ],
)
def test_an_encoder_that_needs_the_whole_recording_says_so(options, message):
    encoder = make_encoder(**options)
    encoder(torch.randn(1, 20, 20), torch.tensor([20]))
    with pytest.raises(ValueError, match=f"cannot stream.*{message}"):
        encoder(torch.randn(1, 20, 20), torch.tensor([20]), infer_mode=True)
