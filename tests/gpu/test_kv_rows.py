"""Cached rows on a real GPU: the cases of the interpreted tests, and the shapes of an 8B model."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import needs_gpu, without_waiting
from tests.kernels.interpreter import there
from tests.kernels.test_kv_rows_triton import (
    kernel,
    test_column_sums,
    test_decode_attention,
    test_decode_attention_without_requests,
    test_move,
)
from thriftree.kernels import kv_rows
from thriftree.kernels.kv_rows import problem, reference

__all__ = ["kernel", "test_column_sums", "test_decode_attention", "test_decode_attention_without_requests", "test_move"]

pytestmark = needs_gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_of_an_8b_layer(dtype: torch.dtype) -> None:
    p = problem.window(32, 4001, heads=8, group=4, dim=128, dtype=dtype)
    step = there(*p.step)
    found = without_waiting(lambda: kv_rows.column_sums(*step))
    expected = reference.column_sums(*step)
    assert bool(((found - expected).abs() <= 2e-5 * (1 + expected.max())).all())
    assert abs(float(found.sum()) / (8 * 4 * 32) - 1) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_decode_of_an_8b_layer(dtype: torch.dtype, biased: bool) -> None:
    lens = [[2048, 1, 700, 0, 333, 64, 65, 1024], [5, 4096, 16, 17, 800, 90, 2, 128]]
    p = problem.decode(lens, group=4, dim=128, block=16, dtype=dtype, isa="rows", biased=biased)
    step, (bias,) = there(*p.step), there(p.bias)
    out = without_waiting(lambda: kv_rows.decode_attention(*step, bias=bias))
    assert float((out.cpu().double() - p.truth()).abs().max()) <= (2e-2 if dtype == torch.bfloat16 else 4e-3)


def test_move_does_not_wait() -> None:
    p = problem.make((300, 300), layers=4, dim=128, block=16, dtype=torch.bfloat16, isa="rows", device="cuda")
    mover = kv_rows.Mover(p.key_caches, p.value_caches)
    step = there(*p.moves((7, 0, 100, 1), torch.Generator().manual_seed(1)))
    before = p.bits()
    without_waiting(lambda: mover(*step))  # twice is the same as once: no destination is a source
    after = p.bits()
    for cache, old in zip((*p.key_caches, *p.value_caches), before, strict=True):
        cache.view(old.dtype).copy_(old)
    reference.move(p.key_caches, p.value_caches, *step, isa="rows")
    assert all(torch.equal(a, b) for a, b in zip(after, p.bits(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
