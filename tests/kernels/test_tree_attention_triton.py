"""The GPU path in Triton's interpreter or on a GPU (interpreter.py), against float64, on two cache layouts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.kernels.interpreter import DEVICE, INTERPRETED, LOOSE, compiles, there, triton_of
from thriftree.kernels import problem
from thriftree.kernels.tree_attention import reference


@pytest.fixture(scope="module")
def kernel() -> Any:
    return triton_of("tree_attention")


def worst(kernel: Any, p: problem.Problem, *, row_major: bool = False, **options: Any) -> float:
    """The largest difference to attention in float64."""
    expected = torch.full(p.query.shape, problem.NAN, dtype=torch.float64, device=DEVICE)
    reference.tree_attention(*p.layer, *p.step, p.scale, out=expected, accumulate=torch.float64, **options)
    keys = kernel.columns(p.key_cache)
    keys, out = keys.contiguous() if row_major else keys, p.output()
    kernel.TritonPlan(*p.step).run(p.query, p.key, p.value, keys, p.value_cache, out, p.scale, **options)
    return float((out.double() - expected).abs().max())


@pytest.mark.parametrize(
    ("row_major", "options"),
    [
        (False, {}),
        (True, {"sliding_window": 20}),
        (False, {"softcap": 5.0, "sinks": torch.linspace(-1, 1, 6), "alibi": torch.linspace(0, 1, 6)}),
    ],
)
def test_attention(kernel: Any, options: dict[str, Any], row_major: bool) -> None:
    rows, ctx, rng = (5, 1, 17), (300, 0, 63), random.Random(0)
    trees = [problem.random_parents(n, rng) for n in rows]
    p = problem.make(trees, ctx, heads=6, kv_heads=2, dim=48, block=32, device=DEVICE)
    options = dict(zip(options, there(*options.values()), strict=True))
    assert worst(kernel, p, row_major=row_major, **options) <= LOOSE * 4e-6


def test_more_splits_than_the_window_has_tiles(kernel: Any) -> None:
    """The last split brings the tree's own rows, whatever is left of the context."""
    tree = problem.random_parents(8, random.Random(2))
    p = problem.make([tree], [700], heads=2, kv_heads=1, dim=16, block=32, device=DEVICE)
    assert worst(kernel, p, sliding_window=40) <= LOOSE * 4e-6


def test_more_rows_than_a_word(kernel: Any) -> None:
    tree = problem.random_parents(70, random.Random(1))
    p = problem.make([tree], [40], heads=2, kv_heads=2, dim=16, block=32, device=DEVICE)
    assert worst(kernel, p) <= LOOSE * 4e-6


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiles_for_a_gpu() -> None:
    from thriftree.kernels.tree_attention.triton import _attend, _join

    names = {"scale": "fp32", "softcap": "fp32", "ancestors": "*i64", "rows_total": "i32", "words": "i32"}
    names |= dict.fromkeys(("sinks", "slopes", "part_o", "part_m", "part_l"), "*fp32")
    names |= dict.fromkeys(("query", "key", "value", "key_cache", "value_cache", "out"), "*bf16")
    names |= dict.fromkeys(("block_table", "row_start", "row_count", "ctx_lens", "depths"), "*i32")
    flags = {"WINDOW": 128, "SOFTCAP": True, "ALIBI": True, "SINKS": True, "SPLITS": 4}
    sizes = {"KV_HEADS": 3, "GROUP": 3, "HEADS": 9, "DIM": 64, "WIDE": 64, "BLOCK": 16, "M": 32, "N": 64}
    for kernel in (_attend, _join):
        assert compiles(kernel, names, flags | sizes)
