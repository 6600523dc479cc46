"""Mixed precision: a minute of speech trains without an infinite or undefined number."""

import pytest
import torch

from espnet_lmu.encoder.lmu_encoder import LMUEncoder


@pytest.mark.parametrize(
    ("lmu_type", "dtype", "steps"),
    [("original", torch.bfloat16, 3), ("parallel", torch.bfloat16, 3), ("original", torch.float16, 1)],
)
def test_minute_of_speech_at_the_published_demo_size(lmu_type, dtype, steps):
    torch.manual_seed(1)
    encoder = LMUEncoder(80, 256, 2, 128, 200.0, lmu_type, input_layer="dw_striding")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.002)
    x, lengths = 3 * torch.randn(2, 6000, 80), torch.tensor([6000, 4200])
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            y, _, _ = encoder(x, lengths)
        assert y.dtype == dtype and y.isfinite().all()
        y.float().square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
        optimizer.step()
