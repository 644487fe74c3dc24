"""Column sums of attention on a GPU, in two passes: the lse of each query row, then the sum of each column."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftree.kernels.kv_rows.triton_dot import dot

ROW_TILE = 32
COLUMN_TILE = 64


@triton.jit
def _logits(
    q, k, line, last, column, end, head, scale, q_row, q_head, k_row, k_head, DIM: tl.constexpr, WIDE: tl.constexpr
):
    """A tile of logits, -inf behind the sequence's end."""
    d = tl.arange(0, WIDE)
    queries = q + line.to(tl.int64)[:, None] * q_row + head * q_head + d[None, :]
    keys = k + column.to(tl.int64)[None, :] * k_row + head * k_head + d[:, None]
    a = tl.load(queries, mask=(line < last)[:, None] & (d < DIM)[None, :], other=0.0)
    b = tl.load(keys, mask=(column < end)[None, :] & (d < DIM)[:, None], other=0.0)
    return tl.where((column < end)[None, :], dot(a, b) * scale, float("-inf"))


@triton.jit
def _row_lse(
    q, k, starts, weights, lse, total, rows, scale, q_row, q_head, k_row, k_head,
    WEIGHED: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one head."""
    head = tl.program_id(2)
    start, end = tl.load(starts + tl.program_id(0)), tl.load(starts + tl.program_id(0) + 1)
    last = tl.minimum(end, start + rows)
    line = start + tl.program_id(1) * M + tl.arange(0, M)
    counts = line < last
    if WEIGHED:
        counts &= tl.load(weights + line, mask=line < last, other=0.0) != 0
    if tl.max(counts.to(tl.int32), 0) > 0:
        best = tl.full([M], -1e30, tl.float32)
        mass = tl.zeros([M], tl.float32)
        for tile in range(tl.cdiv(end - start, N)):
            column = start + tile * N + tl.arange(0, N)
            x = _logits(q, k, line, last, column, end, head, scale, q_row, q_head, k_row, k_head, DIM, WIDE)
            now = tl.maximum(best, tl.max(x, 1))
            mass = mass * tl.exp(best - now) + tl.sum(tl.exp(x - now[:, None]), 1)
            best = now
        tl.store(lse + head.to(tl.int64) * total + line, best + tl.log(mass), mask=line < last)


@triton.jit
def _column_sums(
    q, k, starts, weights, lse, out, total, rows, scale, q_row, q_head, k_row, k_head,
    WEIGHED: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one head, all query rows that count."""
    head = tl.program_id(2)
    start, end = tl.load(starts + tl.program_id(0)), tl.load(starts + tl.program_id(0) + 1)
    last = tl.minimum(end, start + rows)
    column = start + tl.program_id(1) * N + tl.arange(0, N)
    if start + tl.program_id(1) * N < end:
        sums = tl.zeros([N], tl.float32)
        for tile in range(tl.cdiv(last - start, M)):
            line = start + tile * M + tl.arange(0, M)
            weight = (line < last).to(tl.float32)
            if WEIGHED:
                weight = tl.load(weights + line, mask=line < last, other=0.0)
            if tl.max((weight != 0).to(tl.int32), 0) > 0:
                mass = tl.load(lse + head.to(tl.int64) * total + line, mask=line < last, other=0.0)
                x = _logits(q, k, line, last, column, end, head, scale, q_row, q_head, k_row, k_head, DIM, WIDE)
                shares = tl.where((weight != 0)[:, None], tl.exp(x - mass[:, None]) * weight[:, None], 0.0)
                sums += tl.sum(shares, 0)
        tl.store(out + head.to(tl.int64) * total + column, sums, mask=column < end)


def column_sums(
    q: Tensor,
    k: Tensor,
    starts: Sequence[int],
    scale: float,
    *,
    rows: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """See `thriftree.kernels.vision_scores.column_sums`."""
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    total, heads, dim = q.shape
    longest = max(end - start for start, end in pairwise(starts))
    first = longest if rows is None else min(rows, longest)
    lse, out = torch.empty(2, heads, total, dtype=torch.float32, device=q.device)
    offsets = torch.tensor(starts, dtype=torch.int32).to(q.device, non_blocking=True)
    factors = q if weights is None else weights.float().contiguous()
    sizes = {"WEIGHED": weights is not None, "DIM": dim, "WIDE": max(16, triton.next_power_of_2(dim))}
    tail = (total, first, scale, *q.stride()[:2], *k.stride()[:2])
    sequences = len(starts) - 1
    _row_lse[(sequences, triton.cdiv(first, ROW_TILE), heads)](
        q, k, offsets, factors, lse, *tail, **sizes, M=ROW_TILE, N=COLUMN_TILE
    )
    _column_sums[(sequences, triton.cdiv(longest, COLUMN_TILE), heads)](
        q, k, offsets, factors, lse, out, *tail, **sizes, M=ROW_TILE, N=COLUMN_TILE
    )
    return out.sum(0)
