"""AdaKV: heads with much to lose get more of a layer's blocks. Around any method's scores.

Paper: Ada-KV, arXiv 2407.11550. There rows are shared out; here blocks, since half a block frees nothing.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor


def blocks_per_head(score: Tensor, protected: Tensor, total: int, block: int, alpha: float = 0.2) -> Tensor:
    """Share `total` blocks among the heads so that the sum of the scores of the rows in them is largest.

    Args:
        score: ``[H, M]``, comparable between heads; NaN and -inf count as the lowest one, +inf as above the highest.
        protected: ``[H, M]`` bool, rows that stay whatever their score (sinks, recent).
        total: blocks of all heads together.
        block: rows of a block.
        alpha: share of the mean that every head gets at least, as far as it has rows.

    Returns:
        ``[H]`` int64, the sum is `total`; every head has room for its protected rows. Blocks beyond what the rows fill
        are shared out evenly.

    Raises:
        ValueError: `total` has no room for the protected rows.
    """
    heads, rows = score.shape
    full = ceil(rows / block)
    least = (protected.sum(dim=1) + block - 1) // block
    least = least.clamp_min(min(int(alpha * total / heads), full))
    spare = total - int(least.sum())
    if spare < 0:
        raise ValueError(f"budget: {total} blocks for {heads} heads, of which sinks and recent rows need more")
    gain = _gains(score, protected, max(full, total), block)
    gain.masked_fill_(torch.arange(gain.shape[1], device=gain.device) < least[:, None], -torch.inf)
    # Gains fall along a head's blocks, and a stable sort takes equal ones by number of the block: no head has a gap.
    best = gain.T.flatten().argsort(descending=True, stable=True)[:spare] % heads
    return least + torch.bincount(best, minlength=heads)


def _gains(score: Tensor, protected: Tensor, blocks: int, block: int) -> Tensor:
    """``[H, blocks]`` what each further block adds: its rows' scores above the lowest one; -1 where it has no rows."""
    heads, rows = score.shape
    finite = score[score.isfinite()].double()
    low, high = (finite.min(), finite.max()) if len(finite) else (score.new_zeros((), dtype=torch.double),) * 2
    above = score.double().nan_to_num(low.item(), 2 * high.item() - low.item() + 1, low.item()) - low
    above = torch.where(protected, torch.inf, above).sort(dim=1, descending=True).values
    padded = above.new_full((heads, blocks * block), 0.0)
    padded[:, :rows] = above
    gain = padded.view(heads, blocks, block).sum(dim=2)
    gain[:, ceil(rows / block) :] = -1.0
    return gain
