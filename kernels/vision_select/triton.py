"""All picks of an image in one Triton program, the running vector in registers; the products are a matrix product."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftree.kernels.vision_select import reference

#: Earlier picks whose columns are loaded at once.
AHEAD = 8


@triton.jit
def _max_min(between, first, picks, count, k, WIDE: tl.constexpr):
    row = tl.arange(0, WIDE)
    nearest = tl.where(row < count, -1e30, float("inf"))
    pick = tl.load(first)
    for step in range(k):
        tl.store(picks + step, pick)
        mine = tl.load(between + pick * count + row, mask=row < count, other=0.0)
        nearest = tl.where(row == pick, float("inf"), tl.maximum(nearest, mine))
        pick = tl.argmin(nearest, 0).to(tl.int64)


@triton.jit
def _dpp(
    between, weights, alone, columns, picks, count, k, SPANNED: tl.constexpr, WIDE: tl.constexpr, AHEAD: tl.constexpr
):
    row = tl.arange(0, WIDE)
    real = row < count
    weight = tl.load(weights + row, mask=real, other=0.0)
    left = tl.load(alone + row, mask=real, other=0.0)
    least = left * SPANNED
    rest = tl.where(real, weight, -2.0)  # of those not picked; by it where nothing is left to span
    for step in range(k):
        gain = tl.max(left, 0)
        spans = gain > 0
        pick = tl.argmax(tl.where(spans, left, rest), 0)
        tl.store(picks + step, pick.to(tl.int64))
        at = row == pick
        rest = tl.where(at, -1.0, rest)
        if spans:
            mine = tl.load(between + pick.to(tl.int64) * count + row, mask=real, other=0.0)
            new = mine * weight * tl.sum(tl.where(at, weight, 0.0), 0)
            for earlier in range(0, step, AHEAD):
                for ahead in tl.static_range(AHEAD):
                    column = columns + (earlier + ahead) * count
                    inside = earlier + ahead < step
                    factor = tl.load(column + pick, mask=inside, other=0.0)
                    new -= factor * tl.load(column + row, mask=real & inside, other=0.0)
            new = new / tl.sqrt(gain)
            tl.store(columns + step * count + row, new, mask=real)
            tl.debug_barrier()  # the next pick's factor is another thread's
            left -= new * new
            left = tl.where((left <= least) | at, 0.0, left)
            left = tl.where(rest < 0, 0.0, left)


def max_min(unit: Tensor, k: int, first: int | None) -> Tensor:
    """See `thriftree.kernels.vision_select.max_min`; `k` at least 1."""
    between = reference.cosines(unit)
    if first is None:
        start = reference.isolated(between)
    else:  # filled on the device: a copy from the host would wait for it
        start = torch.full((), first, dtype=torch.int64, device=unit.device)
    picks = torch.empty(k, dtype=torch.int64, device=unit.device)
    _max_min[(1,)](between, start, picks, len(unit), k, **_sizes(len(unit)))
    return picks


def greedy_dpp(unit: Tensor, quality: Tensor | None, k: int) -> Tensor:
    """See `thriftree.kernels.vision_select.greedy_dpp`; `k` at least 1."""
    between, count = reference.cosines(unit), len(unit)
    weight, alone = reference.volumes(between, quality)
    columns = torch.empty(k, count, device=unit.device)
    picks = torch.empty(k, dtype=torch.int64, device=unit.device)
    step = (between, weight.contiguous(), alone.contiguous(), columns, picks)
    _dpp[(1,)](*step, count, k, SPANNED=reference.SPANNED, AHEAD=AHEAD, **_sizes(count))
    return picks


def _sizes(count: int) -> dict[str, int]:
    wide = triton.next_power_of_2(count)
    return {"WIDE": wide, "num_warps": min(16, max(1, wide // 128))}
