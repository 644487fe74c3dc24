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
    heads, rows = score.shape
    score = torch.where(score.isnan(), -torch.inf, score)
    first = (pos < sinks) | (pos >= length - recent)
    # A stable sort by position, then by score, then by protection, is one order by all three.
    order = pos.argsort(dim=1, descending=True, stable=True)
    for key in (score, first.to(torch.int8)):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(rows, device=order.device).expand(heads, rows))
    limit = keep[:, None] if isinstance(keep, Tensor) else keep
    return rank < limit
