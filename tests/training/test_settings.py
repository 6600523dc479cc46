"""The settings that recipes have: those for smaller GPUs take the same steps, all build, streaming ones stream."""

from pathlib import Path

import pytest
import yaml

from espnet_lmu.encoder.parameters import build_encoder
from espnet_lmu.encoder.streaming import check_streamable

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FILES = [*CONF.rglob("*.yaml"), *ROOT.glob("egs/*/asr1/conf/**/*.yaml")]
ENCODERS = sorted(path for path in FILES if yaml.safe_load(path.read_text()).get("encoder") == "lmu")


@pytest.mark.parametrize("name, smaller", [("demo", "demo_4gb"), ("base", "base_8gb"), ("large", "large_16gb")])
def test_a_smaller_gpu_takes_the_same_steps(name, smaller):
    settings, other = (yaml.safe_load((CONF / f"train_asr_lmu_{n}.yaml").read_text()) for n in (name, smaller))
    bins = [config.pop("batch_bins") for config in (settings, other)]
    step = [number * config.pop("accum_grad") for number, config in zip(bins, (settings, other), strict=True)]
    assert settings == other
    assert step[0] == step[1] and bins[1] < bins[0]


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_encoder_builds(path):
    encoder, _ = build_encoder(path)
    if "streaming" in path.name:
        check_streamable(encoder)
        assert encoder.streaming_chunk == 8 and encoder.attention_chunk == 1000


def test_files_are_found():
    assert {path.parent.name for path in ENCODERS} == {"conf", "encoders", "ablation"}
    assert sum("streaming" in path.name for path in ENCODERS) == 4
