"""Column sums of attention on a GPU, in two passes: maximum and sum of each query row, then the sum of each column."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftree.kernels.kv_rows.triton_dot import dot

ROW_TILE = 32
COLUMN_TILE = 64
#: Programs that fill a large GPU a few times over.
PROGRAMS = 512


@triton.jit
def _logits(
    q, k, pos, q_pos, head, line, column, lines, rows, scale,
    q_head, q_group, q_row, k_head, k_row, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of logits; -inf where the key is younger than the query. Rows are counted query by query."""
    live, inside = line < lines, column < rows
    d = tl.arange(0, WIDE)
    w = line // GROUP
    rows_at = q + head.to(tl.int64) * q_head + (line % GROUP) * q_group + w.to(tl.int64) * q_row
    keys_at = k + head.to(tl.int64) * k_head + column.to(tl.int64) * k_row
    queries = tl.load(rows_at[:, None] + d[None, :], mask=live[:, None] & (d < DIM)[None, :], other=0.0)
    keys = tl.load(keys_at[None, :] + d[:, None], mask=inside[None, :] & (d < DIM)[:, None], other=0.0)
    now = tl.load(q_pos + w, mask=live, other=0)
    then = tl.load(pos + head * rows + column, mask=inside, other=0)
    seen = live[:, None] & inside[None, :] & (then[None, :] <= now[:, None])
    return tl.where(seen, dot(queries, keys) * scale, float("-inf"))


@triton.jit
def _row_sums(
    q, k, pos, q_pos, part_m, part_l, lines, rows, scale, q_head, q_group, q_row, k_head, k_row,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One tile of query rows, one split of the keys."""
    head, split = tl.program_id(0), tl.program_id(2)
    line = tl.program_id(1) * M + tl.arange(0, M)
    best = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    tiles = tl.cdiv(rows, N)
    each = tl.cdiv(tiles, tl.num_programs(2))
    for tile in range(split * each, tl.minimum(tiles, (split + 1) * each)):
        column = tile * N + tl.arange(0, N)
        x = _logits(
            q, k, pos, q_pos, head, line, column, lines, rows, scale, q_head, q_group, q_row, k_head, k_row,
            GROUP, DIM, WIDE,
        )  # fmt: skip
        now = tl.maximum(best, tl.max(x, 1))
        total = total * tl.exp(best - now) + tl.sum(tl.exp(x - now[:, None]), 1)
        best = now
    slot = (split * tl.num_programs(0) + head) * lines + line
    tl.store(part_m + slot, best, mask=line < lines)
    tl.store(part_l + slot, total, mask=line < lines)


@triton.jit
def _column_sums(
    q, k, pos, q_pos, part_m, part_l, out, lines, rows, scale, q_head, q_group, q_row, k_head, k_row,
    SPLITS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One tile of keys, all query rows."""
    head = tl.program_id(0)
    column = tl.program_id(1) * N + tl.arange(0, N)
    sums = tl.zeros([N], tl.float32)
    for tile in range(tl.cdiv(lines, M)):
        line = tile * M + tl.arange(0, M)
        best = tl.full([M], -1e30, tl.float32)
        total = tl.zeros([M], tl.float32)
        for split in range(SPLITS):
            slot = (split * tl.num_programs(0) + head) * lines + line
            m = tl.load(part_m + slot, mask=line < lines, other=-1e30)
            part = tl.load(part_l + slot, mask=line < lines, other=0.0)
            now = tl.maximum(best, m)
            total = total * tl.exp(best - now) + part * tl.exp(m - now)
            best = now
        x = _logits(
            q, k, pos, q_pos, head, line, column, lines, rows, scale, q_head, q_group, q_row, k_head, k_row,
            GROUP, DIM, WIDE,
        )  # fmt: skip
        total = tl.where(total > 0, total, 1.0)  # a query that sees nothing adds nothing
        sums += tl.sum(tl.exp(x - best[:, None]) / total[:, None], 0)
    tl.store(out + head * rows + column, sums, mask=column < rows)


def column_sums(q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float) -> Tensor:
    """See `thriftree.kernels.kv_rows.column_sums`."""
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    pos, q_pos = pos.contiguous(), q_pos.contiguous()
    (heads, group, queries, dim), rows = q.shape, k.shape[1]
    lines = group * queries
    row_tiles, column_tiles = triton.cdiv(lines, ROW_TILE), triton.cdiv(rows, COLUMN_TILE)
    splits = max(1, min(column_tiles // 4, PROGRAMS // (heads * row_tiles)))
    part_m, part_l = torch.empty(2, splits, heads, lines, dtype=torch.float32, device=q.device)
    out = torch.empty(heads, rows, dtype=torch.float32, device=q.device)
    strides = (*q.stride()[:3], *k.stride()[:2])
    sizes = {"GROUP": group, "DIM": dim, "WIDE": triton.next_power_of_2(dim), "M": ROW_TILE, "N": COLUMN_TILE}
    step = (q, k, pos, q_pos, part_m, part_l)
    _row_sums[(heads, row_tiles, splits)](*step, lines, rows, scale, *strides, **sizes)
    _column_sums[(heads, column_tiles)](*step, out, lines, rows, scale, *strides, SPLITS=splits, **sizes)
    return out
