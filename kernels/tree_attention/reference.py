"""Tree attention in plain torch: the truth for the tests, and the way out where there is no C compiler."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from thriftree.kernels.tree_attention import layout


def unpack(ancestors: Tensor, rows: int) -> Tensor:
    """Bit sets ``[rows, words]`` as a boolean matrix ``[rows, rows]``."""
    column = torch.arange(rows, device=ancestors.device)
    return (ancestors[:, column >> 6] >> (column & 63) & 1).bool()


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
    row_count: Tensor | None = None,
    isa: str = "vec",
    accumulate: torch.dtype = torch.float32,
) -> None:
    """See `thriftree.kernels.tree_attention.tree_attention`; computes in `accumulate`."""
    starts = row_start.tolist()
    counts = [b - a for a, b in pairwise(starts)] if row_count is None else row_count.tolist()
    heads, kv_heads = query.shape[1], key.shape[1]
    group = heads // kv_heads
    for request, (start, rows, ctx) in enumerate(zip(starts, counts, ctx_lens.tolist(), strict=False)):
        if not rows:
            continue
        step = slice(start, start + rows)
        low = max(0, ctx - sliding_window + 1) if sliding_window > 0 else 0
        k = layout.read(key_cache, block_table[request], ctx, True, isa)[:, low:]
        v = layout.read(value_cache, block_table[request], ctx, False, isa)[:, low:]
        k = torch.cat((k, key[step].transpose(0, 1)), 1).to(accumulate)
        v = torch.cat((v, value[step].transpose(0, 1)), 1).to(accumulate)
        q = query[step].to(accumulate).reshape(rows, kv_heads, group, -1).permute(1, 2, 0, 3)

        own = depth[step].long() + ctx
        position = torch.cat((torch.arange(low, ctx, device=own.device), own))
        distance = own[:, None] - position[None, :]
        prefix = torch.ones(rows, ctx - low, dtype=torch.bool, device=own.device)
        seen = torch.cat((prefix, unpack(ancestors[step], rows)), 1)
        if sliding_window > 0:
            seen &= distance < sliding_window

        scores = (q @ k[:, None].transpose(2, 3)) * scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        if alibi is not None:
            scores -= alibi.to(accumulate).reshape(kv_heads, group, 1, 1) * distance
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            sink = sinks.to(accumulate).reshape(kv_heads, group, 1, 1).expand(-1, -1, rows, 1)
            weights = torch.cat((scores, sink), 3).softmax(3)[..., :-1]
        else:
            weights = scores.softmax(3)
        result = weights @ v[:, None]
        out[step] = result.permute(2, 0, 1, 3).reshape(rows, heads, -1).to(out.dtype)


class TorchPlan:
    """`tree_attention` as a plan."""

    def __init__(
        self,
        block_table: Tensor,
        row_start: Tensor,
        ctx_lens: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        row_count: Tensor | None = None,
        isa: str = "vec",
    ) -> None:
        self._step = (block_table, row_start, ctx_lens, ancestors, depth)
        self._row_count, self._isa = row_count, isa

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        out: Tensor,
        scale: float,
        *,
        sliding_window: int = -1,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        alibi: Tensor | None = None,
    ) -> None:
        """Attention of one layer into `out`."""
        tree_attention(
            query, key, value, key_cache, value_cache, *self._step, scale, row_count=self._row_count, isa=self._isa,
            out=out, sliding_window=sliding_window, softcap=softcap, sinks=sinks, alibi=alibi,
        )  # fmt: skip
