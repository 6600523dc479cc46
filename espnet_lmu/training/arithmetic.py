"""How a process that trains on a CPU computes."""

import torch

from espnet_lmu.lmu.products import use_fast_products


def use_fast_arithmetic() -> None:
    """Let this process flush denormal numbers to zero, and multiply float32 matrices with the faster library.

    The gradient of a unit that no frame activates any more (ReLU) is zero, so the optimizer's averages of it decay, by
    0.95 a step in some 1,600 steps, into numbers below 1e-38, and rounding keeps them there. For one such channel of
    the input layer, Muon's step then takes five to seven times as long.
    """
    torch.set_flush_denormal(True)  # first: threads inherit it from the one that starts them
    use_fast_products()
