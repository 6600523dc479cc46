"""Weights for encoders that no training has given any."""

import torch
from torch import nn

from espnet_lmu.encoder.attention import SelfAttention
from espnet_lmu.lmu import LMU


def draw_weights(module: nn.Module) -> nn.Module:
    """Draw the weights that start at zero, so that a test sees what attention and memory do."""
    for part in module.modules():
        if isinstance(part, SelfAttention):
            part.out.reset_parameters()
        elif isinstance(part, LMU) and not part.W_m.any():
            with torch.random.fork_rng(), torch.no_grad():
                nn.init.xavier_normal_(part.W_m)
                part.W_h *= 5  # as in the paper
    return module
