"""The GPU path of the kernels for cached rows, in Triton's interpreter or on a GPU (interpreter.py), against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.interpreter import DEVICE, INTERPRETED, LOOSE, compiles, there, triton_of
from thriftree.kernels.kv_rows import problem, reference


@pytest.fixture(scope="module")
def kernel() -> Any:
    return triton_of("kv_rows")


@pytest.mark.parametrize(
    ("isa", "dtype", "dim", "block", "kv_heads"),
    [
        ("rows", torch.bfloat16, 80, 16, 1),
        ("rows", torch.float32, 64, 32, 3),
        ("rows", torch.float16, 128, 16, 8),
        ("vec", torch.float32, 64, 32, 1),
        ("amx", torch.bfloat16, 64, 32, 3),
    ],
)
@pytest.mark.parametrize("counts", [(1,), (0, 63, 0, 100, 0)])
def test_move(
    kernel: Any, counts: tuple[int, ...], isa: str, dtype: torch.dtype, dim: int, block: int, kv_heads: int
) -> None:
    shape = {"dim": dim, "block": block, "kv_heads": kv_heads}
    p = problem.make((100, 163), layers=len(counts), dtype=dtype, isa=isa, device=DEVICE, **shape)
    sources, destinations, offsets = there(*p.moves(counts, torch.Generator().manual_seed(1)))
    sources[5::7], destinations[6::7] = -1, -1
    before = p.bits()
    reference.move(p.key_caches, p.value_caches, sources, destinations, offsets, isa=isa)
    expected = p.bits()
    for cache, old in zip((*p.key_caches, *p.value_caches), before, strict=True):
        cache.view(old.dtype).copy_(old)
    kernel.Mover(p.key_caches, p.value_caches, isa)(sources, destinations, offsets)
    assert all(torch.equal(a, b) for a, b in zip(p.bits(), expected, strict=True))


@pytest.mark.parametrize(
    ("queries", "rows", "heads", "group", "dim", "future", "dtype"),
    [
        (1, 63, 1, 1, 64, 0, torch.float32),
        (32, 100, 3, 3, 80, 0, torch.bfloat16),
        (9, 1000, 2, 4, 64, 500, torch.float32),
        (33, 40, 8, 2, 128, 60, torch.float32),
    ],
)
def test_column_sums(
    queries: int, rows: int, heads: int, group: int, dim: int, future: int, dtype: torch.dtype
) -> None:
    kernel = triton_of("kv_rows", "triton_window")
    p = problem.window(queries, rows, heads=heads, group=group, dim=dim, dtype=dtype, future=future)
    sums, truth = kernel.column_sums(*there(*p.step)).cpu(), p.truth()
    assert bool(((sums - truth).abs() <= LOOSE * 2e-6 * (1 + truth.max())).all())


@pytest.mark.parametrize(
    ("isa", "dtype", "dim", "block", "kv_heads", "group"),
    [
        ("rows", torch.float32, 64, 16, 1, 3),
        ("rows", torch.bfloat16, 80, 32, 8, 4),
        ("vec", torch.float32, 128, 32, 3, 17),
        ("amx", torch.bfloat16, 64, 32, 1, 1),
    ],
)
@pytest.mark.parametrize("lens", [[[63]], [[100, 0, 33], [1, 1000, 16]]])
@pytest.mark.parametrize("biased", [False, True])
def test_decode_attention(
    lens: list[list[int]], biased: bool, isa: str, dtype: torch.dtype, dim: int, block: int, kv_heads: int, group: int
) -> None:
    kernel = triton_of("kv_rows", "triton_decode")
    p = problem.decode(lens, group=group, dim=dim, block=block, dtype=dtype, isa=isa, kv_heads=kv_heads, biased=biased)
    out = kernel.decode_attention(*there(*p.step), bias=there(p.bias)[0], isa=isa).cpu()
    assert out.dtype == dtype
    # The interpreter cuts the last bits off where the hardware rounds.
    assert float((out.double() - p.truth()).abs().max()) <= (LOOSE * 4e-6 if dtype == torch.float32 else 2e-2)


def test_decode_attention_without_requests() -> None:
    kernel = triton_of("kv_rows", "triton_decode")
    p = problem.decode([[63, 5]])
    none = there(p.q[:0], *p.step[1:3], p.table[:0], p.lens[:0], p.scale)
    assert kernel.decode_attention(*none, bias=None, isa="vec").shape == (0, 2, 3, 64)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiles_for_a_gpu() -> None:
    import triton.language as tl

    from thriftree.kernels.kv_rows import triton as cells
    from thriftree.kernels.kv_rows import triton_decode, triton_window

    sizes = {"HEADS": 8, "ROWS": 16, "TOKENS": 1, "PIECE": 1, "DIM": 80, "WIDE": 128, "WORD": tl.int16, "BIAS": True}
    sizes |= {"K_TOKENS": 1, "K_PIECE": 1, "V_TOKENS": 1, "V_PIECE": 1, "CACHE_HEADS": 8, "BLOCK": 16, "SPLITS": 4}
    sizes |= {"GROUP": 3, "M": 32, "N": 64}
    names = dict.fromkeys(("addresses", "layers", "sources", "destinations", "pos", "q_pos"), "*i64")
    names |= dict.fromkeys(("table", "lens"), "*i32") | {"scale": "fp32", "bias": "*fp32", "out": "*fp32"}
    names |= dict.fromkeys(("q", "k", "key_cache", "value_cache"), "*bf16")
    names |= dict.fromkeys(("part_o", "part_m", "part_l"), "*fp32")
    for kernel in (
        cells._move, triton_window._row_sums, triton_window._column_sums, triton_decode._attend, triton_decode._join
    ):  # fmt: skip
        assert compiles(kernel, names, sizes)
