"""What the kernels must give, in plain torch: every device. Some query rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

#: Logits that are held at once: they stay in the cache of a core or two.
MOST = 1 << 19


def column_sums(
    q: Tensor,
    k: Tensor,
    starts: Sequence[int],
    scale: float,
    *,
    rows: int | None = None,
    weights: Tensor | None = None,
    most: int = MOST,
) -> Tensor:
    """See `thriftree.kernels.vision_scores.column_sums`."""
    sums = torch.zeros(len(q), device=q.device)
    for start, end in pairwise(starts):
        last = end if rows is None else min(end, start + rows)
        lines = torch.arange(start, last, device=q.device)
        if weights is not None:
            lines = lines[weights[start:last] != 0]
        if len(lines) == 0:
            continue
        keys = k[start:end].float().permute(1, 2, 0).contiguous()
        heads, count = len(keys), end - start
        step = max(1, most // max(1, heads * count))
        room = torch.empty(heads * min(step, len(lines)) * count, device=q.device)  # fresh pages cost more than sums
        for part in lines.split(step):
            logits = room[: heads * len(part) * count].view(heads, len(part), count)
            torch.bmm((q[part].float() * scale).transpose(0, 1), keys, out=logits)
            logits.sub_(logits.amax(-1, keepdim=True)).exp_()
            factors = (1.0 if weights is None else weights[part]) / logits.sum(-1)
            sums[start:end].addmv_(logits.flatten(0, 1).T, factors.flatten())
    return sums


def summary_logits(q: Tensor, k: Tensor, starts: Sequence[int], scale: float, cls: bool) -> Tensor:
    """``[T]`` float32: scaled logits of the CLS query of each sequence, or of its mean query, added up over heads."""
    parts = []
    for start, end in pairwise(starts):
        query = q[start].float() if cls else q[start:end].float().mean(0)
        parts.append((k[start:end].float() * (query * scale)).sum((1, 2)))
    return torch.cat(parts) if parts else torch.zeros(0, device=q.device)
