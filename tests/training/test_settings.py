"""The published training settings: those for smaller GPUs take the same steps."""

from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("name, smaller", [("demo", "demo_4gb"), ("base", "base_8gb"), ("large", "large_16gb")])
def test_a_smaller_gpu_takes_the_same_steps(name, smaller):
    settings, other = (yaml.safe_load((CONF / f"train_asr_lmu_{n}.yaml").read_text()) for n in (name, smaller))
    bins = [config.pop("batch_bins") for config in (settings, other)]
    step = [number * config.pop("accum_grad") for number, config in zip(bins, (settings, other), strict=True)]
    assert settings == other
    assert step[0] == step[1] and bins[1] < bins[0]
