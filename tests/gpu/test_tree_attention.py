"""Tree attention on a real GPU: the cases of the interpreted tests, the types they cannot do, the shapes of models."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.gpu.device import needs_gpu, without_waiting
from tests.kernels.test_tree_attention_triton import kernel, test_attention, test_more_rows_than_a_word, worst
from thriftree.kernels import problem

__all__ = ["kernel", "test_attention", "test_more_rows_than_a_word"]

pytestmark = needs_gpu
ROUNDING = {torch.float32: 4e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize(
    ("rows", "ctx", "heads", "kv_heads", "dim", "block", "dtype"),
    [
        ((8,), (512,), 32, 8, 128, 16, torch.bfloat16),
        ((64, 1, 33), (8191, 1, 700), 32, 8, 128, 16, torch.bfloat16),
        ((17, 5), (300, 0), 9, 3, 64, 128, torch.float32),
        ((17, 5), (300, 63), 6, 6, 80, 16, torch.float16),
        ((9,), (1000,), 8, 1, 256, 16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 40, "softcap": 20.0}])
def test_models(
    kernel: Any, options: dict[str, Any], rows: tuple[int, ...], ctx: tuple[int, ...], heads: int, kv_heads: int,
    dim: int, block: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    trees = [problem.random_parents(n, random.Random(n)) for n in rows]
    p = problem.make(
        trees, ctx, heads=heads, kv_heads=kv_heads, dim=dim, block=block, dtype=dtype, device="cuda"
    )  # fmt: skip
    assert worst(kernel, p, row_major=True, **options) <= ROUNDING[dtype]


def test_rows_with_gaps_and_no_wait(kernel: Any) -> None:
    p = problem.make([problem.chain(6), problem.chain(9)], [70, 33], dtype=torch.bfloat16, device="cuda")
    count, keys = torch.tensor([4, 9], dtype=torch.int32, device="cuda"), kernel.columns(p.key_cache)
    full, part = p.output(), p.output()

    def run(out: torch.Tensor, *gaps: torch.Tensor) -> torch.Tensor:
        plan = kernel.TritonPlan(*p.step, *gaps)
        plan.run(p.query, p.key, p.value, keys, p.value_cache, out, p.scale)
        return out

    without_waiting(lambda: run(full))
    without_waiting(lambda: run(part, count))
    assert torch.equal(part[:4], full[:4]) and torch.equal(part[6:], full[6:])
    assert bool(part[4:6].isnan().all())


def test_in_a_graph(kernel: Any) -> None:
    """An engine that replays CUDA graphs changes the contexts' lengths in place."""
    p = problem.make([problem.random_parents(8, random.Random(0))], [500], dtype=torch.bfloat16, device="cuda")
    keys, out, plan = kernel.columns(p.key_cache), p.output(), kernel.TritonPlan(*p.step)
    layer = (p.query, p.key, p.value, keys, p.value_cache)
    plan.run(*layer, out, p.scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run(*layer, out, p.scale)
    p.ctx_lens.fill_(123)
    fresh = p.output()
    plan.run(*layer, fresh, p.scale)
    out.fill_(problem.NAN)
    graph.replay()
    assert torch.equal(out, fresh)
