"""From scores to the rows that stay. Exactly as many as asked for, sinks and recent rows among them."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_mask(score: Tensor, pos: Tensor, keep: int | Tensor, length: int, sinks: int, recent: int) -> Tensor:
    """Which rows stay.

    Args:
        score: ``[H, M]``, higher is better; NaN counts as the worst.
        pos: ``[H, M]`` positions of the rows.
        keep: rows that stay in every head, or ``[H]`` how many in each.
        length: tokens so far.
        sinks, recent: that many first and newest tokens stay whatever their score (as far as they are cached).

    Returns:
        ``[H, M]`` bool with exactly `keep` True in each head. The order is total (score, then the newer token), so that
        equal caches always give equal choices.
    """
    score = torch.where(score.isnan(), -torch.inf, score)
    first = (pos < sinks) | (pos >= length - recent)
    mask = _clear(score, first, keep)
    return _ranked(score, pos, first, keep) if mask is None else mask


def _clear(score: Tensor, first: Tensor, keep: int | Tensor) -> Tensor | None:
    """The choice where no tie is at the cut of any head, without a sort; None: there is one."""
    free = keep - first.sum(dim=1)  # places of each head for rows that must be good
    if int(free.min()) < 1 or int(free.max()) > score.shape[1]:
        return None
    others = score.masked_fill(first, -torch.inf)
    if int(free.min()) == int(free.max()):
        cut = others.kthvalue(score.shape[1] + 1 - int(free[0]), dim=1, keepdim=True).values
    else:
        cut = others.sort(dim=1, descending=True).values.gather(1, free[:, None] - 1)
    mask = (others >= cut).logical_or_(first)
    return mask if bool((mask.sum(dim=1) == keep).all()) else None


def _ranked(score: Tensor, pos: Tensor, first: Tensor, keep: int | Tensor) -> Tensor:
    heads, rows = score.shape
    # A stable sort by position, then by score, then by protection, is one order by all three.
    order = pos.argsort(dim=1, descending=True, stable=True)
    for key in (score, first.to(torch.int8)):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(rows, device=order.device).expand(heads, rows))
    limit = keep[:, None] if isinstance(keep, Tensor) else keep
    return rank < limit
