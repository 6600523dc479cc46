"""Float32 matrix products of a CPU by the faster of torch's two libraries.

torch multiplies float32 matrices with MKL, which does not use the AVX-512 units of processors that are not Intel's: an
AMD EPYC of the fifth generation reaches 43 % of the speed that oneDNN, which torch brings too, reaches on it. torch
hands float32 products to oneDNN when it may compute them in bfloat16. oneDNN does so where there are AMX units; on a
processor with AVX-512 and without AMX it computes in float32 all the same. There, and only there, this permission
costs no precision; `onednn_is_exact` checks that on the machine.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch

_setting = torch.backends.mkldnn.matmul

# Multiply-adds from which on oneDNN is faster; below, it takes longer to start (measured: 8 to 32 rows).
_SMALLEST_PRODUCT = 1_000_000

# Of `fast_products`: how many threads are in it, and the setting before the first of them.
_lock = threading.Lock()
_users, _before = 0, ""


@functools.cache
def onednn_is_exact() -> bool:
    """Whether oneDNN computes float32 products in float32 here even if it may use bfloat16, and is worth using."""
    if not torch.backends.mkldnn.is_available() or not torch.cpu._is_avx512_supported():
        return False
    if torch.cpu._is_amx_tile_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(128, 128, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = _setting.fp32_precision
    _setting.fp32_precision = "bf16"
    try:
        # float32 is off by 1e-7 of the terms' size here, bfloat16 by 1e-3.
        return bool(((a @ b).double() - exact).abs().max() < 1e-4)
    finally:
        _setting.fp32_precision = before


def use_fast_products() -> None:
    """Let this process multiply float32 matrices with oneDNN from now on, where that is exact."""
    if onednn_is_exact():
        _setting.fp32_precision = "bf16"


def fast_products_in_use() -> bool:
    """Whether oneDNN multiplies this process's float32 matrices, without loss."""
    return _setting.fp32_precision == "bf16" and onednn_is_exact()


@contextlib.contextmanager
def fast_products(rows: int, inner: int, columns: int) -> Iterator[None]:
    """Multiply float32 matrices of this size, (rows, inner) x (inner, columns), with the faster library meanwhile.

    Several threads may do so at once. The setting is the process's: they then compute with that of whoever came last,
    and whoever is the last to leave puts back what was there before.
    """
    global _users, _before
    if not onednn_is_exact():
        yield
        return
    with _lock:
        if not _users:
            _before = _setting.fp32_precision
        _users += 1
        _setting.fp32_precision = "bf16" if rows * inner * columns >= _SMALLEST_PRODUCT else "ieee"
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _setting.fp32_precision = _before
