"""A chain is causal attention: the kernel agrees with vLLM's own op and reads the cache that vLLM writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thriftree.kernels import problem
from thriftree.kernels.problem import Problem
from thriftree.kernels.tree_attention import prepare
from thriftree.kernels.tree_attention.commit import Committer

ops = pytest.importorskip("vllm._custom_ops")
Shape = tuple[int, int, int, int]  # heads, kv_heads, dim, block


def isa(p: Problem) -> str:
    return "vec" if p.query.shape[2] % 32 == 0 else "vec16"


def make(rows: int, ctx: int, shape: Shape, dtype: torch.dtype, seed: int = 0) -> Problem:
    heads, kv_heads, dim, block = shape
    tree = [problem.chain(rows)]
    p = problem.make(tree, [ctx], heads=heads, kv_heads=kv_heads, dim=dim, block=block, seed=seed)
    return p.to(dtype)


def vllm_write(p: Problem, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    ops.cpu_attn_reshape_and_cache(p.key, p.value, key_cache, value_cache, slots, isa(p))


def slots_after(p: Problem) -> Tensor:
    """Slot of each row of the first request, were it a sequence."""
    block = p.key_cache.shape[2]
    at = torch.arange(p.query.shape[0]) + int(p.ctx_lens[0])
    return p.block_table[0][at // block].long() * block + at % block


def with_room(p: Problem) -> Problem:
    """The rows may overflow into one more block: give the request the first free one."""
    used = set(p.block_table[0, :-1].tolist())
    p.block_table[0, -1] = next(b for b in range(p.key_cache.shape[0]) if b not in used)
    return p


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(9, 3, 64, 128), (8, 1, 80, 64), (4, 4, 128, 32), (6, 2, 96, 96)])
@pytest.mark.parametrize("window", [-1, 50])
def test_chain_equals_the_stock_op(dtype: torch.dtype, shape: Shape, window: int) -> None:
    heads, kv_heads, dim, _ = shape
    for rows, ctx in ((1, 0), (1, 100), (5, 31), (9, 700), (17, 127)):
        p = with_room(make(rows, ctx, shape, dtype))
        ours, stock = p.output(), p.output().contiguous()
        prepare(*p.step).run(*p.layer, ours, p.scale, sliding_window=window)
        vllm_write(p, p.key_cache, p.value_cache, slots_after(p))
        starts, lens = p.row_start, p.ctx_lens + rows
        metadata = ops.cpu_attn_get_scheduler_metadata(
            1, heads, kv_heads, dim, lens, dtype, starts, True, window, isa(p), True
        )
        ops.cpu_attention_with_kv_cache(
            p.query, p.key_cache.nan_to_num(), p.value_cache.nan_to_num(), stock, starts, lens, p.scale,
            True, None, window, p.block_table, 0.0, metadata, None,
        )  # fmt: skip
        limit = 2e-6 if dtype == torch.float32 else 1.6e-2
        assert float((ours - stock).abs().max()) <= limit, (rows, ctx)


CACHES = [
    ("vec", torch.float32, (9, 3, 64, 128)),
    ("vec", torch.bfloat16, (4, 4, 32, 96)),
    ("vec16", torch.float32, (8, 1, 80, 64)),
    ("vec16", torch.bfloat16, (8, 1, 80, 32)),
    ("amx", torch.bfloat16, (9, 3, 64, 128)),
    ("amx", torch.bfloat16, (2, 1, 128, 32)),
]


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(("isa", "dtype", "shape"), CACHES)
def test_commit_writes_what_vllm_writes(isa: str, dtype: torch.dtype, shape: Shape, fallback: bool) -> None:
    if isa == "amx" and not torch.cpu._is_avx512_supported():
        pytest.skip("vLLM's build for machines without AVX-512 does not know the amx layout")
    block = shape[3]
    layers = [make(9, 50, shape, dtype, seed) for seed in range(4)]
    rows = torch.tensor([0, 3, 4, 8])
    slots = torch.tensor([block - 1, block + 1, -1, 0])
    expected, pairs = [], []
    for p in layers:
        cache = torch.cat((p.key_cache, p.value_cache), 2)  # a layer's cache as the backend allocates it
        pairs.append(cache.chunk(2, dim=2))
        expected.append(cache.clone().chunk(2, dim=2))
        ops.cpu_attn_reshape_and_cache(p.key[rows], p.value[rows], *expected[-1], slots, isa)
    commit = Committer([k for k, _ in pairs], [v for _, v in pairs], isa)
    write = commit._slowly if fallback else commit
    write([p.key for p in layers], [p.value for p in layers], rows, slots)
    for (key, value), (wanted_key, wanted_value) in zip(pairs, expected, strict=True):
        torch.testing.assert_close(key, wanted_key, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(value, wanted_value, rtol=0, atol=0, equal_nan=True)
