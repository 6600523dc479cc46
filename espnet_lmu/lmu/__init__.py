"""Legendre Memory Units in PyTorch: the delay system and the layers built on it; needs torch alone.

Every layer is called as layer(x, lengths=None, state=None) and returns (y, state): x (B, T, input_size), lengths (B,)
valid frames of each sequence, y (B, T, hidden_size), of `GeneralLMU` (B, T, output_size), of `Bidirectional` both side
by side.
"""

from espnet_lmu.lmu.bidirectional import Bidirectional
from espnet_lmu.lmu.general import GeneralLMU
from espnet_lmu.lmu.legendre import LegendreSystem
from espnet_lmu.lmu.original import LMU
from espnet_lmu.lmu.parallel import ParallelLMU

__all__ = ["LMU", "Bidirectional", "GeneralLMU", "LegendreSystem", "ParallelLMU"]
