"""Encoders to compare with: ESPnet's own and torchaudio's Conformer, at the size of ours.

Each peer has its recommended proportions; its width is the smallest at which it has no fewer parameters than ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MEL_BINS = 80


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def smallest_not_below(build: Callable[[int], nn.Module], widths: Iterable[int], parameters: int) -> int:
    """The first of the growing `widths` at which `build(width)` has at least so many parameters."""
    for width in widths:
        with torch.device("meta"):
            module = build(width)
        if count_parameters(module) >= parameters:
            return width
    raise ValueError(f"no width gives {parameters:,} parameters")


def conformer(width: int) -> nn.Module:
    """ESPnet's Conformer as its recipes set it up, 8 blocks."""
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    return ConformerEncoder(
        MEL_BINS,
        output_size=width,
        attention_heads=4,
        linear_units=4 * width,
        num_blocks=8,
        input_layer="conv2d",
        macaron_style=True,
        rel_pos_type="latest",
        pos_enc_layer_type="rel_pos",
        selfattention_layer_type="rel_selfattn",
        use_cnn_module=True,
        cnn_module_kernel=31,
        use_flash_attn=False,
    )


def e_branchformer(width: int) -> nn.Module:
    """ESPnet's E-Branchformer as its recipes set it up, 8 blocks."""
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    return EBranchformerEncoder(
        MEL_BINS,
        output_size=width,
        attention_heads=4,
        attention_layer_type="rel_selfattn",
        pos_enc_layer_type="rel_pos",
        rel_pos_type="latest",
        cgmlp_linear_units=4 * width,
        cgmlp_conv_kernel=31,
        use_ffn=True,
        macaron_ffn=True,
        linear_units=4 * width,
        merge_conv_kernel=31,
        num_blocks=8,
        input_layer="conv2d",
        use_flash_attn=False,
    )


def transformer(width: int) -> nn.Module:
    """ESPnet's Transformer as its recipes set it up, 12 blocks."""
    from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

    return TransformerEncoder(
        MEL_BINS,
        output_size=width,
        attention_heads=4,
        linear_units=4 * width,
        num_blocks=12,
        input_layer="conv2d",
        use_flash_attn=False,
    )


def vgg_blstm(width: int) -> nn.Module:
    """ESPnet's VGG and bidirectional LSTM, 4 layers."""
    from espnet2.asr.encoder.vgg_rnn_encoder import VGGRNNEncoder

    return VGGRNNEncoder(MEL_BINS, num_layers=4, hidden_size=width, output_size=width)


class TorchaudioConformer(nn.Module):
    """torchaudio's Conformer after a linear layer, called like ESPnet's encoders; it does not subsample by itself.

    Four frames are stacked, the cheapest subsampling there is.
    """

    def __init__(self, width: int):
        super().__init__()
        from torchaudio.models import Conformer

        self.linear = nn.Linear(4 * MEL_BINS, width)
        self.conformer = Conformer(width, 4, 4 * width, 8, 31)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        lengths = torch.div(lengths, 4, rounding_mode="floor")
        frames = int(lengths.max())
        out, lengths = self.conformer(self.linear(x[:, : 4 * frames].unflatten(1, (frames, 4)).flatten(2)), lengths)
        return out, lengths, None


PEERS: dict[str, Callable[[int], nn.Module]] = {
    "Conformer": conformer,
    "E-Branchformer": e_branchformer,
    "Transformer": transformer,
    "VGG-BLSTM": vgg_blstm,
    "torchaudio Conformer": TorchaudioConformer,
}


def build_peer(name: str, parameters: int) -> nn.Module:
    """The peer of that name at the smallest width, a multiple of 16, with at least so many parameters."""
    width = smallest_not_below(PEERS[name], range(32, 2048, 16), parameters)
    torch.manual_seed(1)
    return PEERS[name](width)
