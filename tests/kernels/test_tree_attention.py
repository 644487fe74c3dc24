"""`tree_attention` against float64 on odd shapes; unused cache slots and the output start as NaN."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from thriftree.kernels import problem
from thriftree.kernels.problem import Problem
from thriftree.kernels.tree_attention import backend, layout, prepare, reference, tree_attention

ROWS = (1, 2, 5, 9, 17, 33, 65, 81)
CONTEXTS = (0, 1, 31, 63, 100, 1000)
# heads, kv_heads, dim, block
SHAPES = ((9, 3, 64, 128), (4, 4, 32, 32), (8, 1, 80, 64), (6, 2, 128, 128), (3, 1, 96, 96), (2, 1, 16, 256))
#: Rounding of inputs is shared; what differs is the rounding of the output.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def truth(p: Problem, **options: Any) -> Tensor:
    out = torch.full(p.query.shape, problem.NAN, dtype=torch.float64)
    reference.tree_attention(*p.layer, *p.step, p.scale, out=out, accumulate=torch.float64, **options)
    return out


def error(p: Problem, expected: Tensor, **options: Any) -> float:
    out = p.output()
    prepare(*p.step).run(*p.layer, out, p.scale, **options)
    return float((out.double() - expected).abs().max())


def tree(rows: int) -> list[int]:
    return problem.random_parents(rows, random.Random(rows))


def options(heads: int, names: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(heads)
    every: dict[str, dict[str, Any]] = {
        "window": {"sliding_window": 40},
        "softcap": {"softcap": 5.0},
        "sinks": {"sinks": torch.randn(heads, generator=generator)},
        "alibi": {"alibi": torch.rand(heads, generator=generator)},
    }
    return {key: value for name in names.split() for key, value in every[name].items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Short parallel regions crawl on a busy machine; threads have their own tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_c_kernel_is_built() -> None:
    assert backend() == "c"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_float32(rows: int, shape: tuple[int, int, int, int]) -> None:
    heads, kv_heads, dim, block = shape
    for ctx in CONTEXTS:
        p = problem.make([tree(rows)], [ctx], heads=heads, kv_heads=kv_heads, dim=dim, block=block, seed=ctx)
        assert error(p, truth(p)) <= TOLERANCE[torch.float32], ctx


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_types(dtype: torch.dtype, rows: int, shape: tuple[int, int, int, int]) -> None:
    heads, kv_heads, dim, block = shape
    for ctx in CONTEXTS:
        p = problem.make([tree(rows)], [ctx], heads=heads, kv_heads=kv_heads, dim=dim, block=block).to(dtype)
        assert error(p, truth(p)) <= TOLERANCE[dtype], ctx


@pytest.mark.parametrize("shape", [(9, 3, 64, 128), (2, 1, 128, 32), (4, 2, 32, 96)])
def test_amx_layout(shape: tuple[int, int, int, int]) -> None:
    heads, kv_heads, dim, block = shape
    for rows, ctx in ((1, 1), (2, 31), (9, 100), (33, 700)):
        p = problem.make(
            [tree(rows)], [ctx], heads=heads, kv_heads=kv_heads, dim=dim, block=block, dtype=torch.bfloat16, isa="amx"
        )
        expected = truth(p, isa="amx")
        for plan in (prepare(*p.step, isa="amx"), reference.TorchPlan(*p.step, isa="amx")):
            out = p.output()
            plan.run(*p.layer, out, p.scale)
            assert float((out.double() - expected).abs().max()) <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("names", ["window", "softcap", "sinks", "alibi", "window softcap sinks alibi"])
@pytest.mark.parametrize("ctx", [0, 39, 40, 100, 1000])
def test_options(names: str, ctx: int) -> None:
    for rows in (1, 9, 65):
        p = problem.make([tree(rows)], [ctx], seed=rows)
        chosen = options(9, names)
        assert error(p, truth(p, **chosen), **chosen) <= 2 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_requests_on_any_number_of_threads(threads: int, dtype: torch.dtype) -> None:
    rows, ctx = (1, 9, 2, 65, 1, 5), (700, 0, 33, 200, 1, 1000)
    p = problem.make([tree(r) for r in rows], ctx, dtype=dtype, fused=threads != 2)
    expected = truth(p)
    torch.set_num_threads(threads)
    assert error(p, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_one_context_cut_for_many_threads(threads: int) -> None:
    for rows in (1, 9, 65):
        for ctx, block in ((31, 32), (100, 32), (500, 128), (1000, 64)):
            p = problem.make([tree(rows)], [ctx], kv_heads=1, block=block, seed=ctx)
            expected = truth(p)
            torch.set_num_threads(threads)
            assert error(p, expected) <= TOLERANCE[torch.float32], (rows, ctx)
            torch.set_num_threads(1)


def test_result_does_not_depend_on_timing() -> None:
    torch.set_num_threads(2)
    p = problem.make([tree(9)], [1000])
    outs = [p.output() for _ in range(20)]
    for out in outs:
        tree_attention(*p.layer, *p.step, p.scale, out=out)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_rows_between_the_trees_are_left_alone() -> None:
    p = problem.make([tree(5), tree(3), tree(4)], [100, 40, 70])
    expected = truth(p)
    expected[5:8] = problem.NAN
    table, starts, ctx, ancestors, depth = p.step
    plan = prepare(table[::2], starts[:-1][::2], ctx[::2], ancestors, depth, torch.tensor([5, 4]))
    out = p.output()
    plan.run(*p.layer, out, p.scale)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [5, 81])
def test_mutants_are_caught(rows: int) -> None:
    p = problem.make([tree(rows)], [100])
    expected = truth(p)

    def changed(**values: Tensor) -> float:
        return error(Problem(**{**vars(p), **values}), expected)

    assert changed(ancestors=torch.full_like(p.ancestors, -1)) > 1e-2
    assert changed(ancestors=problem.bits([problem.chain(rows)])[0]) > 1e-2
    assert changed(ctx_lens=p.ctx_lens - 1) > 1e-3
    last = p.ancestors.clone()
    last[-1, -1] ^= 1 << (rows - 1) % 64
    assert changed(ancestors=last) > 1e-3
    window = {"sliding_window": 20}
    moved = Problem(**{**vars(p), "depth": torch.arange(rows, dtype=torch.int32)})
    assert error(moved, truth(p, **window), **window) > 1e-3


def test_scores_of_any_size() -> None:
    p = problem.make([tree(9)], [300])
    for factor in (1e-3, 30.0, 1000.0):
        big = Problem(**{**vars(p), "query": p.query * factor})
        assert error(big, truth(big)) <= (2e-6 if factor < 1 else 1e-6 * factor * 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 72}, "multiple of 16"),
        ({"block": 24}, "multiple of 16"),
        ({"dtype": torch.float64}, "float64"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], message: str) -> None:
    p = problem.make([tree(2)], [10], **change)
    with pytest.raises(ValueError, match=message):
        prepare(*p.step).run(*p.layer, p.output(), p.scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vec", torch.bfloat16, 64, 128, "fp8"), "KV cache of fp8"),
        (("neon", torch.bfloat16, 64, 128), "isa neon"),
        (("rvv", torch.float32, 64, 128), "isa rvv"),
        (("amx", torch.float32, 64, 128), "bfloat16"),
        (("amx", torch.bfloat16, 80, 128), "multiple of 32"),
        (("vec", torch.float64, 64, 128), "float64"),
        (("vec16", torch.float32, 72, 128), "head size"),
        (("vec16", torch.float32, 80, 24), "block size"),
    ],
)
def test_refusals_at_start_up(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.check(*arguments)


def test_mixed_types_are_refused() -> None:
    p = problem.make([tree(2)], [10])
    caches = (p.key_cache.to(torch.float8_e4m3fn), p.value_cache.to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="float8"):
        prepare(*p.step).run(p.query, p.key, p.value, *caches, p.output(), p.scale)


def test_torch_fallback_agrees() -> None:
    p = problem.make([tree(9), tree(1), tree(70)], [100, 0, 63])
    chosen = options(9, "window softcap sinks alibi")
    for kwargs in ({}, chosen):
        out = p.output()
        reference.TorchPlan(*p.step).run(*p.layer, out, p.scale, **kwargs)
        assert float((out.double() - truth(p, **kwargs)).abs().max()) <= 4e-6
