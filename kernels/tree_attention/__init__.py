"""Tree attention: each row attends the committed prefix (paged cache) and its ancestors in the step."""

from __future__ import annotations

from torch import Tensor

from thriftree.kernels.tree_attention import cpu
from thriftree.kernels.tree_attention.base import Plan
from thriftree.kernels.tree_attention.cpu import CpuPlan
from thriftree.kernels.tree_attention.reference import TorchPlan

__all__ = ["Plan", "backend", "prepare", "tree_attention"]


def backend(device: str = "cpu") -> str:
    """What runs on `device`: ``c``, ``torch`` or ``triton``."""
    if device != "cpu":
        return "triton"
    return "torch" if cpu.library() is None else "c"


def prepare(
    block_table: Tensor,
    row_start: Tensor,
    ctx_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    row_count: Tensor | None = None,
    isa: str = "vec",
) -> Plan:
    """What a step's layers share; call `Plan.run` once per layer.

    Args:
        block_table: ``[B, max_blocks]`` int32.
        row_start: ``[B + 1]`` int32, first row of each request (``[B]`` is enough with `row_count`).
        ctx_lens: ``[B]`` int32, tokens of each request that are in the cache.
        ancestors: ``[R, words]`` int64 bit sets: bit ``j`` of word ``w`` of row ``i`` says that row
            ``64 w + j`` of the same request is `i` or an ancestor of `i`.
        depth: ``[R]`` int32, 0 for the root.
        row_count: ``[B]`` int32, rows of each request where they do not follow each other without gaps.
        isa: vLLM's name for the layout of the CPU cache (`layout.check` says what is supported).
    """
    step = (block_table, row_start, ctx_lens, ancestors, depth, row_count)
    chosen = backend(block_table.device.type)
    if chosen == "triton":
        from thriftree.kernels.tree_attention.triton import TritonPlan

        return TritonPlan(*step)
    return CpuPlan(*step, isa) if chosen == "c" else TorchPlan(*step, isa)


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    row_start: Tensor,
    ctx_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    scale: float,
    *,
    out: Tensor,
    sliding_window: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
) -> None:
    """One layer without a plan.

    Query ``[R, heads, dim]``; key and value ``[R, kv_heads, dim]``, the step's own rows, not in the cache;
    caches ``[blocks, kv_heads, block, dim]`` with the keys of a block stored ``[dim, block]``, as in vLLM;
    `out` ``[R, heads, dim]``. `sliding_window` counts in depth: row `i` at position ``ctx + depth[i]`` sees
    what is less than a window before it.
    """
    prepare(block_table, row_start, ctx_lens, ancestors, depth).run(
        query, key, value, key_cache, value_cache, out, scale,
        sliding_window=sliding_window, softcap=softcap, sinks=sinks, alibi=alibi,
    )  # fmt: skip
