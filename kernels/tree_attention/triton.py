"""Tree attention for GPUs, and for the interpreter in tests: split context, then a sum over the splits.

Same algorithm as cpu.c. The one difference: caches are addressed by their strides as ``[blocks, kv_heads,
block, dim]``, so any layout whose elements lie on a grid will do (`columns` views the CPU's keys that way).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROW_TILE = 32
COLUMN_TILE = 64
#: Programs that fill a large GPU a few times over.
PROGRAMS = 512
LOG2E = 1.4426950408889634


def columns(key_cache: Tensor) -> Tensor:
    """A view ``[blocks, kv_heads, block, dim]`` of keys that the CPU backend stores as ``[dim, block]``."""
    return key_cache.as_strided(key_cache.shape, (*key_cache.stride()[:2], 1, key_cache.shape[2]))


@triton.jit
def _attend(
    query, key, value, key_cache, value_cache, block_table, row_start, row_count, ctx_lens, ancestors, depths,
    sinks, slopes, part_o, part_m, part_l,
    scale, softcap, table_stride, words,
    q_row, q_head, k_row, k_head, v_row, v_head,
    kc_block, kc_head, kc_token, kc_dim, vc_block, vc_head, vc_token, vc_dim,
    rows_total, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One (request, KV head), one tile of its rows x query heads, one split of its context."""
    request = tl.program_id(0) // KV_HEADS
    head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    start = tl.load(row_start + request)
    rows = tl.load(row_count + request)
    ctx = tl.load(ctx_lens + request)
    line = tl.program_id(1) * M + tl.arange(0, M)
    if tl.program_id(1) * M >= rows * GROUP:
        return
    live = line < rows * GROUP
    row = start + line // GROUP
    q_of = head * GROUP + line % GROUP
    d = tl.arange(0, WIDE)
    in_dim = d < DIM
    q = tl.load(
        query + row[:, None].to(tl.int64) * q_row + q_of[:, None] * q_head + d[None, :],
        mask=live[:, None] & in_dim[None, :], other=0.0,
    )  # fmt: skip
    depth = tl.load(depths + row, mask=live, other=0)
    slope = tl.zeros([M], tl.float32)
    if ALIBI:
        slope = tl.load(slopes + q_of, mask=live, other=0.0)
    best = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, WIDE], tl.float32)

    low = 0
    if WINDOW > 0:
        low = tl.maximum(0, ctx - WINDOW + 1)
    tiles = tl.cdiv(ctx - low, N)
    per_split = tl.cdiv(tiles, splits)
    first = tl.minimum(tiles, split * per_split)
    last = tl.minimum(tiles, first + per_split)
    steps = tl.where(split == splits - 1, tl.cdiv(rows, N), 0)
    for tile in range(first, last + steps):
        j = tl.arange(0, N)
        if tile < last:
            at = low + tile * N + j
            inside = at < ctx
            block = tl.load(block_table + request * table_stride + at // BLOCK, mask=inside, other=0).to(tl.int64)
            k_at = key_cache + block * kc_block + head * kc_head + (at % BLOCK) * kc_token
            v_at = value_cache + block * vc_block + head * vc_head + (at % BLOCK) * vc_token
            k = tl.load(k_at[None, :] + d[:, None] * kc_dim, mask=inside[None, :] & in_dim[:, None], other=0.0)
            v = tl.load(v_at[:, None] + d[None, :] * vc_dim, mask=inside[:, None] & in_dim[None, :], other=0.0)
            distance = ctx + depth[:, None] - at[None, :]
            seen = inside[None, :] & live[:, None]
        else:
            own = (tile - last) * N + j
            inside = own < rows
            mine = (start + own).to(tl.int64)
            k = tl.load(
                key + mine[None, :] * k_row + head * k_head + d[:, None],
                mask=inside[None, :] & in_dim[:, None], other=0.0,
            )  # fmt: skip
            v = tl.load(
                value + mine[:, None] * v_row + head * v_head + d[None, :],
                mask=inside[:, None] & in_dim[None, :], other=0.0,
            )  # fmt: skip
            distance = depth[:, None] - tl.load(depths + mine, mask=inside, other=0)[None, :]
            both = inside[None, :] & live[:, None]
            word = tl.load(ancestors + row[:, None] * words + (own >> 6)[None, :], mask=both, other=0)
            seen = both & ((word >> (own & 63)[None, :]) & 1 == 1)
        if WINDOW > 0:
            seen &= distance < WINDOW
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            e = tl.exp(-2 * tl.abs(scores) / softcap)
            scores = tl.where(scores < 0, -1.0, 1.0) * softcap * (1 - e) / (1 + e)
        if ALIBI:
            scores -= slope[:, None] * distance.to(tl.float32)
        scores = tl.where(seen, scores, float("-inf"))
        now = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - now[:, None])
        factor = tl.exp(best - now)
        total = total * factor + tl.sum(weights, 1)
        out = out * factor[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = now

    slot = (split * rows_total + row).to(tl.int64) * (KV_HEADS * GROUP) + q_of
    tl.store(part_o + slot[:, None] * DIM + d[None, :], out, mask=live[:, None] & in_dim[None, :])
    tl.store(part_m + slot, best, mask=live)
    tl.store(part_l + slot, total, mask=live)


@triton.jit
def _join(
    part_o, part_m, part_l, row_start, row_count, sinks, out, o_row, o_head, rows_total,
    SPLITS: tl.constexpr, SINKS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sum the splits of one request's row, head by head."""
    request = tl.program_id(0)
    if tl.program_id(1) >= tl.load(row_count + request):
        return
    row = (tl.load(row_start + request) + tl.program_id(1)).to(tl.int64)
    head = tl.program_id(2)
    d = tl.arange(0, WIDE)
    best = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    if SINKS:
        best = tl.load(sinks + head + tl.zeros([1], tl.int32)).to(tl.float32)
        total += 1.0
    result = tl.zeros([WIDE], tl.float32)
    for split in range(SPLITS):
        slot = (split * rows_total + row) * HEADS + head + tl.zeros([1], tl.int64)
        m = tl.load(part_m + slot)
        now = tl.maximum(best, m)
        total = total * tl.exp(best - now) + tl.load(part_l + slot) * tl.exp(m - now)
        o = tl.load(part_o + slot * DIM + d, mask=d < DIM, other=0.0)
        result = result * tl.exp(best - now) + o * tl.exp(m - now)
        best = now
    tl.store(out + row * o_row + head * o_head + d, (result / total).to(out.dtype.element_ty), mask=d < DIM)


class TritonPlan:
    """A step's requests and trees on the device. Nothing here waits for the device."""

    def __init__(
        self,
        block_table: Tensor,
        row_start: Tensor,
        ctx_lens: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        row_count: Tensor | None = None,
    ) -> None:
        count = row_start[1:] - row_start[:-1] if row_count is None else row_count
        self._step = (block_table, row_start, count, ctx_lens, ancestors.contiguous(), depth)
        self.requests = count.shape[0]
        self.most_rows = min(64 * ancestors.shape[1], ancestors.shape[0])

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
        rows, heads, dim = query.shape
        kv_heads, block = key.shape[1], key_cache.shape[2]
        group, wide = heads // kv_heads, triton.next_power_of_2(dim)
        items = (self.requests * kv_heads, triton.cdiv(self.most_rows * group, ROW_TILE))
        longest = triton.cdiv(self._step[0].shape[1] * block, 4 * COLUMN_TILE)
        splits = max(1, min(longest, PROGRAMS // (items[0] * items[1])))
        part_o = torch.empty(splits, rows, heads, dim, dtype=torch.float32, device=query.device)
        part_m, part_l = torch.empty(2, splits, rows, heads, dtype=torch.float32, device=query.device)
        nothing = part_m
        _attend[(*items, splits)](
            query, key, value, key_cache, value_cache, *self._step,
            nothing if sinks is None else sinks, nothing if alibi is None else alibi, part_o, part_m, part_l,
            scale, softcap, self._step[0].stride(0), self._step[4].shape[1],
            *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
            *key_cache.stride(), *value_cache.stride(),
            rows, WINDOW=max(sliding_window, 0), SOFTCAP=softcap > 0, ALIBI=alibi is not None,
            KV_HEADS=kv_heads, GROUP=group, DIM=dim, WIDE=wide, BLOCK=block, M=ROW_TILE, N=COLUMN_TILE,
        )  # fmt: skip
        _join[(self.requests, self.most_rows, heads)](
            part_o, part_m, part_l, *self._step[1:3], nothing if sinks is None else sinks,
            out, *out.stride()[:2], rows,
            SPLITS=splits, SINKS=sinks is not None, HEADS=heads, DIM=dim, WIDE=wide,
        )  # fmt: skip
