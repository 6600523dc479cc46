"""`espnet-lmu bench`: the LMU and its encoder against what one would otherwise use, side by side in one run."""
