"""Decode attention over head-block tables on a GPU: split rows, then a sum over the splits."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftree.kernels.kv_rows import grid
from thriftree.kernels.kv_rows.triton_dot import dot

TILE = 64
#: Programs that fill a large GPU a few times over.
PROGRAMS = 512


@triton.jit
def _attend(
    q, key_cache, value_cache, table, lens, bias, part_o, part_m, part_l, scale, table_width,
    q_row, q_head, q_group, k_block, k_head, k_outer, k_inner, kd_outer, kd_inner,
    v_block, v_head, v_outer, v_inner, vd_outer, vd_inner,
    K_TOKENS: tl.constexpr, K_PIECE: tl.constexpr, V_TOKENS: tl.constexpr, V_PIECE: tl.constexpr,
    BIAS: tl.constexpr, HEADS: tl.constexpr, CACHE_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One (request, head), one split of its rows. `M` is the group, padded."""
    item, split = tl.program_id(0), tl.program_id(1)
    rows = tl.load(lens + item)
    g, d = tl.arange(0, M), tl.arange(0, WIDE)
    live, in_dim = g < GROUP, d < DIM
    mine = q + (item // HEADS).to(tl.int64) * q_row + (item % HEADS) * q_head
    query = tl.load(mine + g[:, None] * q_group + d[None, :], mask=live[:, None] & in_dim[None, :], other=0.0)
    k_of = d // K_PIECE * kd_outer + d % K_PIECE * kd_inner
    v_of = d // V_PIECE * vd_outer + d % V_PIECE * vd_inner
    best = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, WIDE], tl.float32)
    tiles = tl.cdiv(rows, N)
    each = tl.cdiv(tiles, tl.num_programs(1))
    for tile in range(split * each, tl.minimum(tiles, (split + 1) * each)):
        j = tile * N + tl.arange(0, N)
        seen = j < rows
        head_block = tl.load(table + item.to(tl.int64) * table_width + j // BLOCK, mask=seen, other=0).to(tl.int64)
        row = j % BLOCK
        extra = tl.zeros([N], tl.float32)
        if BIAS:
            extra = tl.load(bias + head_block * BLOCK + row, mask=seen, other=0.0).to(tl.float32)
            seen &= extra > float("-inf")
        block, head = head_block // CACHE_HEADS, head_block % CACHE_HEADS
        k_at = key_cache + block * k_block + head * k_head + row // K_TOKENS * k_outer + row % K_TOKENS * k_inner
        v_at = value_cache + block * v_block + head * v_head + row // V_TOKENS * v_outer + row % V_TOKENS * v_inner
        k = tl.load(k_at[None, :] + k_of[:, None], mask=seen[None, :] & in_dim[:, None], other=0.0)
        v = tl.load(v_at[:, None] + v_of[None, :], mask=seen[:, None] & in_dim[None, :], other=0.0)
        x = dot(query, k) * scale + extra[None, :]
        x = tl.where(seen[None, :], x, float("-inf"))
        now = tl.maximum(best, tl.max(x, 1))
        weights = tl.exp(x - now[:, None])
        factor = tl.exp(best - now)
        total = total * factor + tl.sum(weights, 1)
        out = out * factor[:, None] + dot(weights.to(v.dtype), v)
        best = now
    slot = (split * tl.num_programs(0) + item).to(tl.int64) * GROUP + g
    tl.store(part_o + slot[:, None] * DIM + d[None, :], out, mask=live[:, None] & in_dim[None, :])
    tl.store(part_m + slot, best, mask=live)
    tl.store(part_l + slot, total, mask=live)


@triton.jit
def _join(part_o, part_m, part_l, out, lines, SPLITS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):
    """Sum the splits of one query row; 0 where it saw nothing."""
    line = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDE)
    best = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    result = tl.zeros([WIDE], tl.float32)
    for split in range(SPLITS):
        slot = split * lines + line + tl.zeros([1], tl.int64)
        m = tl.load(part_m + slot)
        now = tl.maximum(best, m)
        total = total * tl.exp(best - now) + tl.load(part_l + slot) * tl.exp(m - now)
        o = tl.load(part_o + slot * DIM + d, mask=d < DIM, other=0.0)
        result = result * tl.exp(best - now) + o * tl.exp(m - now)
        best = now
    result = result / tl.where(total > 0, total, 1.0)
    tl.store(out + line * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)


def decode_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    *,
    bias: Tensor | None,
    isa: str,
) -> Tensor:
    """See `thriftree.kernels.kv_rows.decode_attention`."""
    q = q if q.stride(-1) == 1 else q.contiguous()
    table, lens = table.contiguous(), lens.contiguous()
    requests, heads, group, dim = q.shape
    block, items, wide = key_cache.shape[2], requests * heads, triton.next_power_of_2(dim)
    k, v = grid.by_token(key_cache, True, isa), grid.by_token(value_cache, False, isa)
    splits = max(1, min(triton.cdiv(table.shape[2] * block, 4 * TILE), PROGRAMS // max(1, items)))
    part_o = torch.empty(splits, items, group, dim, dtype=torch.float32, device=q.device)
    part_m, part_l = torch.empty(2, splits, items, group, dtype=torch.float32, device=q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not items:
        return out
    _attend[(items, splits)](
        q, key_cache, value_cache, table, lens, part_m if bias is None else bias, part_o, part_m, part_l,
        scale, table.shape[2], *q.stride()[:3], *k.stride(), *v.stride(),
        K_TOKENS=k.shape[3], K_PIECE=k.shape[5], V_TOKENS=v.shape[3], V_PIECE=v.shape[5], BIAS=bias is not None,
        HEADS=heads, CACHE_HEADS=key_cache.shape[1], GROUP=group, BLOCK=block, DIM=dim, WIDE=wide,
        M=max(16, triton.next_power_of_2(group)), N=TILE,
    )  # fmt: skip
    _join[(items * group,)](part_o, part_m, part_l, out, items * group, SPLITS=splits, DIM=dim, WIDE=wide)
    return out
