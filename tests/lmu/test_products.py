"""Float32 products by oneDNN: as exact as MKL's, and a setting that comes back."""

import pytest
import torch

from espnet_lmu.lmu import products


@pytest.fixture(autouse=True)
def setting_is_restored():
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 10, 64), (97, 513, 31), (600, 256, 768), (64, 4096, 64)], ids=str)
def test_products_stay_exact_to_float32(sizes):
    products.use_fast_products()
    torch.manual_seed(0)
    rows, inner, columns = sizes
    a, b, c = torch.randn(rows, inner), torch.randn(inner, columns), torch.randn(rows, columns)
    exact = a.double() @ b.double()
    limit = 1e-6 * inner**0.5 + 1e-6
    assert ((a @ b).double() - exact).abs().max() < 10 * limit
    assert (torch.addmm(c, a, b).double() - exact - c).abs().max() < 10 * limit
    assert ((a.expand(2, -1, -1) @ b.expand(2, -1, -1)).double() - exact).abs().max() < 10 * limit


def test_setting_lasts_as_long_as_the_block_and_depends_on_the_size(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    setting = torch.backends.mkldnn.matmul
    setting.fp32_precision = "ieee"
    with products.fast_products(8, 768, 768):
        assert setting.fp32_precision == "bf16" and products.fast_products_in_use()
    with products.fast_products(8, 16, 16):
        assert setting.fp32_precision == "ieee"
    assert setting.fp32_precision == "ieee" and not products.fast_products_in_use()
    with pytest.raises(RuntimeError), products.fast_products(8, 768, 768):
        raise RuntimeError
    assert setting.fp32_precision == "ieee"


def test_setting_of_before_comes_back_when_threads_overlap(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    setting = torch.backends.mkldnn.matmul
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    one, two = products.fast_products(8, 16, 16), products.fast_products(8, 16, 16)
    try:
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        assert setting.fp32_precision == "ieee"
        two.__exit__(None, None, None)
        assert setting.fp32_precision == "bf16"
    finally:
        setting.fp32_precision = before


def test_precision_is_left_alone_where_it_would_be_lost(monkeypatch):
    """A processor with AMX computes in bfloat16 when it is allowed to."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    products.onednn_is_exact.cache_clear()
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        products.use_fast_products()
        with products.fast_products(8, 768, 768):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        products.onednn_is_exact.cache_clear()
