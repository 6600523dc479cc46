"""`encoder: lmu` for ESPnet: layers of self-attention and Legendre Memory Units between two linear layers.

The one file that knows ESPnet's AbsEncoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.contextual_block_transformer_encoder import ContextualBlockTransformerEncoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet_lmu.encoder.attention import CrossAttention, SelfAttention
from espnet_lmu.encoder.dropout import Dropout
from espnet_lmu.encoder.layer import LMULayer
from espnet_lmu.encoder.streaming import EncoderState, is_streamable, stream
from espnet_lmu.encoder.subsampling import build_input_layer, in_pieces
from espnet_lmu.lmu import LMU, Bidirectional, ParallelLMU
from espnet_lmu.lmu.checks import check_counts, check_lengths, check_switches

LMU_TYPES = ("original", "parallel")

# Frames of features from which on recordings are encoded in pieces of as many: a minute, if they are of 10 ms.
_PIECE = 6000


def _refuse_other_weights(
    module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
) -> None:
    """Fail on missing or unknown weights: ESPnet loads with `strict=False`, which leaves them random silently."""
    for kind in ("weight", "bias"):  # of ESPnet's input layers, as ESPnet 202511 names them
        before = f"{prefix}embed.embed.out.0.{kind}"
        if before in state_dict:
            state_dict[f"{prefix}embed.embed.out.{kind}"] = state_dict.pop(before)
    own = {prefix + name for name in module.state_dict()}
    given = {name for name in state_dict if name.startswith(prefix)}
    if own != given:
        problems = [
            f"{title}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
            for title, names in (("missing", own - given), ("unknown", given - own))
            if names
        ]
        raise RuntimeError(f"the weights do not fit this LMU encoder ({'; '.join(problems)})")


def _calm(lmu: LMU) -> None:
    """Let a layer start with little recurrence: a fifth of the paper's W_h, and a memory that is not read yet.

    With the paper's start, streaming encoders keep CTC at blanks for more than a thousand steps at learning rates that
    suit those of both directions (egs/mini_librispeech/asr1/RESULTS.md). The published encoder starts as published.
    """
    with torch.no_grad():
        lmu.W_h *= 0.2
        lmu.W_m.zero_()


def _left_and_chunks(context: Sequence[int | Sequence[int]]) -> tuple[int, tuple[int, ...]]:
    """Frames of the left context and of each size of chunk that the option `attention_context` names."""
    if isinstance(context, Sequence) and len(context) == 2:
        left, last = context
        chunks = tuple(last) if isinstance(last, Sequence) else (last,)
        if chunks and all(isinstance(frames, int) for frames in (left, *chunks)) and left >= 0 and min(chunks) >= 1:
            return left, chunks
    raise ValueError(f"attention_context {context!r}: give [left, chunk], whole numbers of at least 0 and 1 frames")


# ESPnet's streaming command asserts that the encoder is this one (or its Conformer), and calls it as `forward` says.
@ContextualBlockTransformerEncoder.register
class LMUEncoder(AbsEncoder):
    """Frames -> input layer -> num_blocks x [self-attention, LMU, LayerNorm] -> linear.

    The defaults are the published model of the "base" size. B: batch size, T: frames, T': frames after the input
    layer, F: features per frame, D: output size.

    Args:
        input_size: features per frame F (given by ESPnet).
        output_size: D, also the hidden size of the LMUs.
        num_blocks: number of layers.
        memory_size: order d of the Legendre memory.
        theta: window of the memory in frames (after the input layer).
        lmu_type: "original" (Voelker et al. 2019) or "parallel" (Chilkuri & Eliasmith 2021, faster).
        memory_d: number of memories, each fed by an own input channel ("parallel" only).
        discretizer: "zoh" (zero-order hold) or "euler".
        bidirectional: one LMU of size D/2 in each direction instead of one of size D forward.
        use_attention: whether layers have self-attention.
        use_cross_attention: whether layers attend to the `memory` of `forward` (ESPnet's s2t_ctc task).
        attention_heads: number of attention heads.
        attention_context: [left, chunk] in frames after the input layer limits the self-attention of a frame to its
            own chunk of the sequence and `left` frames before the chunk; None for all frames. With several sizes,
            [left, [chunk, ...]], each training step draws one (Zhang et al. 2020, "U2") and the model can then be
            used with any of them: whole recordings take the largest, streaming takes the smallest. The attributes
            `attention_chunk` and `streaming_chunk` can be set to others. Original LMUs of one direction then start with
            a fifth of the paper's W_h and with W_m at zero.
        linear_units: hidden units of the position-wise feed-forward module at the end of each layer; 0 for none.
        gated_linear_units: whether each of these units is multiplied by a gate of its own (SwiGLU); with two thirds of
            the units, a module has as many parameters.
        dropout_rate: dropout of each branch of a layer and of the input.
        attention_dropout_rate: dropout of the attention weights.
        input_layer: "linear", ESPnet's "conv2d" (by 4), "conv2d1", "conv2d2", "conv2d6", "conv2d8", or the
            depthwise "dw_striding" (by 4) and "dw_striding8".
        input_channels: channels of the convolutions of "dw_striding" and "dw_striding8"; None for 64.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        interctc_layer_idx: layers (from 1) whose output is returned for intermediate CTC.
        interctc_use_conditioning: add the intermediate CTC posteriors to the layer's output (self-conditioned CTC).
        block_size: `streaming_chunk` in frames; None for the smallest chunk of `attention_context`.
        hop_size, look_ahead: not used. ESPnet's asr_inference_streaming wants these three in the configuration.

    Without `bidirectional`, and with `attention_context` or without attention, the encoder streams: see `forward`.

    Raises:
        ValueError: an option that cannot work.

    Examples:
        >>> encoder = LMUEncoder(80, output_size=64, num_blocks=2, memory_size=32, theta=40.0)
        >>> out, out_lengths, _ = encoder(torch.randn(2, 50, 80), torch.tensor([50, 30]))
        >>> out.shape
        torch.Size([2, 50, 64])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 512,
        num_blocks: int = 4,
        memory_size: int = 256,
        theta: float = 200.0,
        lmu_type: str = "original",
        memory_d: int = 1,
        discretizer: str = "zoh",
        bidirectional: bool = False,
        use_attention: bool = True,
        use_cross_attention: bool = False,
        attention_heads: int = 8,
        attention_context: Sequence[int | Sequence[int]] | None = None,
        linear_units: int = 0,
        gated_linear_units: bool = False,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        input_layer: str = "linear",
        input_channels: int | None = None,
        gradient_checkpointing: bool = False,
        interctc_layer_idx: Sequence[int] = (),
        interctc_use_conditioning: bool = False,
        block_size: int | None = None,
        hop_size: int | None = None,
        look_ahead: int | None = None,
    ):
        super().__init__()
        if lmu_type not in LMU_TYPES:
            raise ValueError(f"lmu_type {lmu_type!r} is unknown: one of {', '.join(LMU_TYPES)}")
        if memory_d != 1 and lmu_type != "parallel":
            raise ValueError(f"memory_d {memory_d} needs lmu_type parallel; not {lmu_type}")
        counts = {"input_size": input_size, "output_size": output_size, "num_blocks": num_blocks}
        counts |= {"attention_heads": attention_heads, "memory_d": memory_d}
        counts |= {"input_channels": input_channels} if input_channels is not None else {}
        counts |= {"block_size": block_size} if block_size is not None else {}
        check_counts(**counts)
        check_switches(
            bidirectional=bidirectional,
            use_attention=use_attention,
            use_cross_attention=use_cross_attention,
            gated_linear_units=gated_linear_units,
            gradient_checkpointing=gradient_checkpointing,
            interctc_use_conditioning=interctc_use_conditioning,
        )
        if not isinstance(linear_units, int) or linear_units < 0:
            raise ValueError(f"linear_units {linear_units!r} must be a whole number, 0 for no feed-forward module")
        if gated_linear_units and not linear_units:
            raise ValueError("gated_linear_units: there are none; set linear_units")
        rates = {"dropout_rate": dropout_rate, "attention_dropout_rate": attention_dropout_rate}
        for name, rate in rates.items():
            if not isinstance(rate, (int, float)) or not 0 <= rate <= 1:  # YAML 1.1 reads 1e-1 as text
                raise ValueError(f"{name} {rate!r} must be a number between 0 and 1, such as 0.1")
        if interctc_use_conditioning and not interctc_layer_idx:
            raise ValueError("interctc_use_conditioning needs interctc_layer_idx")
        if bidirectional and output_size % 2:
            raise ValueError(f"output_size {output_size} must be even for a bidirectional encoder")
        if not isinstance(interctc_layer_idx, Sequence) or isinstance(interctc_layer_idx, str):
            raise ValueError(f"interctc_layer_idx {interctc_layer_idx!r} must be a list of layers, such as [2]")
        for index in interctc_layer_idx:
            if not isinstance(index, int) or not 0 < index < num_blocks:
                raise ValueError(
                    f"interctc_layer_idx {index!r} must be a whole number between 1 and num_blocks - 1 = "
                    f"{num_blocks - 1}"
                )

        def build_lmu() -> nn.Module:
            options = {"discretizer": discretizer}
            if lmu_type == "parallel":
                options["memory_d"] = memory_d
            directions = 2 if bidirectional else 1
            layers = [
                (LMU if lmu_type == "original" else ParallelLMU)(
                    output_size, output_size // directions, memory_size, theta, **options
                )
                for _ in range(directions)
            ]
            if lmu_type == "original" and attention_context is not None and not bidirectional:
                _calm(layers[0])
            return Bidirectional(*layers) if bidirectional else layers[0]

        attention_options = (output_size, attention_heads, attention_dropout_rate)
        chunks: tuple[int, ...] = ()
        if attention_context is not None:
            left, chunks = _left_and_chunks(attention_context)
            attention_context = (left, max(chunks))

        self.input_size = input_size
        self._output_size = output_size
        self.bidirectional = bidirectional
        self.use_cross_attention = use_cross_attention
        self.gradient_checkpointing = gradient_checkpointing
        self.interctc_layer_idx = list(interctc_layer_idx)
        # ESPnet reads this attribute, then sets `conditioning_layer` and passes `ctc` to `forward`.
        self.interctc_use_conditioning = interctc_use_conditioning
        self.conditioning_layer: nn.Module | None = None
        self.chunks = chunks
        # Frames of a chunk of the self-attention, outside training; None without attention_context.
        self.attention_chunk: int | None = max(chunks, default=None)
        self.streaming_chunk: int | None = block_size or min(chunks, default=None)
        self.embed = build_input_layer(input_layer, input_size, output_size, input_channels)
        self.dropout = Dropout(dropout_rate)
        self.layers = nn.ModuleList(
            LMULayer(
                output_size,
                build_lmu(),
                SelfAttention(*attention_options, attention_context) if use_attention else None,
                CrossAttention(*attention_options) if use_cross_attention else None,
                linear_units,
                gated_linear_units,
                dropout_rate,
            )
            for _ in range(num_blocks)
        )
        self.out = nn.Linear(output_size, output_size)
        self.register_load_state_dict_pre_hook(_refuse_other_weights)

    def output_size(self) -> int:
        """Feature dimension D of the output."""
        return self._output_size

    def forward(
        self,
        xs_pad: Tensor,
        ilens: Tensor,
        prev_states: EncoderState | None = None,
        ctc: CTC | None = None,
        return_all_hs: bool = False,
        prefix_embeds: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        is_final: bool = True,
        infer_mode: bool = False,
    ) -> tuple[Tensor | tuple[Tensor, list], Tensor, EncoderState | None]:
        """Encode a padded batch, or the next frames of recordings.

        Args:
            xs_pad: features, (B, T, F).
            ilens: valid frames of each sequence, (B,).
            prev_states: with `infer_mode`, the state that the call with the frames before returned.
            ctc: ESPnet's CTC module, needed for (and only for) self-conditioned CTC.
            return_all_hs: return the output of every layer beside the last.
            prefix_embeds: embedded tokens put before the first frame, (B, P, D); the output has P more frames.
            memory: what layers with cross-attention attend to, (B, M, D).
            memory_mask: valid entries of the memory, (B, 1, M); None for all.
            is_final: with `infer_mode`, whether the recordings end with these frames.
            infer_mode: stream: `xs_pad`, without padding, are the next frames of recordings. The output is that of
                the frames that became certain, none perhaps; all outputs in a row are those of one call with the
                whole recordings in chunks of the same size (`attention_chunk` as `streaming_chunk`). The third value
                is the state for the next call, None after the end.

        Returns:
            Output (B, T', D), padded with each sequence's last frame; valid frames of each sequence (B,); None.
            Instead of the output alone, `(output, [(layer, its projected output (B, T', D)), ...])` with
            `interctc_layer_idx`, and `(output, [output of each layer, ...])` with `return_all_hs`.

        Raises:
            TooShortUttError: a sequence is too short for the input layer (when streaming, it has no output).
            ValueError: features or lengths of another shape or type; a memory is given, but the encoder has no
                cross-attention; no CTC module is given, but the encoder is conditioned on it; the encoder cannot
                stream, or what was asked for is not to be had while it does.
        """
        if xs_pad.dim() != 3 or xs_pad.size(2) != self.input_size:
            raise ValueError(f"expected features of shape (B, T, {self.input_size}), got {tuple(xs_pad.shape)}")
        ilens = check_lengths(ilens, xs_pad)
        if infer_mode:
            if prefix_embeds is not None or memory is not None or return_all_hs:
                raise ValueError("infer_mode takes no prefix_embeds and no memory, and returns the last layer alone")
            out, state = stream(self, xs_pad, prev_states, is_final, ctc)
            return out, ilens.new_full(ilens.shape, out.size(1)), state
        if self.interctc_use_conditioning and ctc is None:
            raise ValueError("interctc_use_conditioning: true needs the CTC layer (ctc)")
        if memory is not None and not self.use_cross_attention:
            raise ValueError("this task gives the encoder a memory to attend to: set use_cross_attention: true")
        # Half an hour in pieces takes a fifth less time than at once, and a quarter of the memory.
        long = not torch.is_grad_enabled() and xs_pad.size(1) > _PIECE and bool((ilens == xs_pad.size(1)).all())
        plain = prefix_embeds is None and memory is None and not return_all_hs and not self.interctc_layer_idx
        if long and plain and not self.training and is_streamable(self):
            out = self._encode_pieces(xs_pad)
            return out, ilens.new_full(ilens.shape, out.size(1)), None
        x, lengths = in_pieces(self.embed, xs_pad, _PIECE) if long else self.embed(xs_pad, ilens)
        x = x[:, : int(lengths.max())]
        if prefix_embeds is not None:
            x, lengths = torch.cat([prefix_embeds, x], dim=1), lengths + prefix_embeds.size(1)
        valid = torch.arange(x.size(1), device=x.device) < lengths.to(x.device)[:, None]
        # Without padding, layers need not look for it.
        padded = None if bool(valid.all()) else valid
        frames = None if padded is None else lengths
        chunk = self.attention_chunk
        if self.training and len(self.chunks) > 1:
            chunk = self.chunks[int(torch.randint(len(self.chunks), ()))]
        x = self.dropout(x)
        intermediate, all_outputs = [], []
        for index, layer in enumerate(self.layers, start=1):
            if self.gradient_checkpointing and self.training:
                x, _ = checkpoint(layer, x, frames, padded, memory, memory_mask, chunk, use_reentrant=False)
            else:
                x, _ = layer(x, frames, padded, memory, memory_mask, chunk)
            if index in self.interctc_layer_idx:
                projected = self.out(x)
                intermediate.append((index, projected))
                if self.interctc_use_conditioning:
                    x = x + self.conditioning_layer(ctc.softmax(projected))
            all_outputs.append(x)
        # ESPnet's CER while it trains takes the best token of every frame, padding too: a last frame again adds none.
        rows, last = torch.arange(x.size(0), device=x.device), lengths.to(x.device) - 1

        def repeat_last(y: Tensor) -> Tensor:
            return torch.where(valid[:, :, None], y, y[rows, last][:, None])

        out = repeat_last(self.out(x))
        intermediate = [(index, repeat_last(projected)) for index, projected in intermediate]
        if intermediate:
            return (out, intermediate), lengths, None
        if return_all_hs:
            return (out, all_outputs), lengths, None
        return out, lengths, None

    def _encode_pieces(self, x: Tensor) -> Tensor:
        """Recordings without padding, (B, T, F) -> (B, T', D), as a stream with the attention of whole recordings."""
        outputs, state = [], None
        pieces = x.split(_PIECE, dim=1)
        for number, piece in enumerate(pieces, start=1):
            y, state = stream(self, piece, state, is_final=number == len(pieces), chunk=self.attention_chunk)
            outputs.append(y)
        return torch.cat(outputs, dim=1)
