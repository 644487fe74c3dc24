"""What the kernels must give, in plain torch: every device. Some query rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

#: Logits that are held at once: they stay in the cache of a core or two.
MOST = 1 << 18


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
        keys = k[start:end].float().permute(1, 2, 0).contiguous()
        step = max(1, most // max(1, keys.shape[0] * (end - start)))
        for part in lines.split(step):
            logits = torch.matmul((q[part].float() * scale).transpose(0, 1), keys)
            shares = torch.softmax(logits, dim=-1)
            if weights is not None:
                shares *= weights[part][:, None]
            sums[start:end] += shares.sum((0, 1))
    return sums


def summary_logits(q: Tensor, k: Tensor, starts: Sequence[int], scale: float, cls: bool) -> Tensor:
    """``[T]`` float32: scaled logits of the CLS query of each sequence, or of its mean query, added up over heads."""
    parts = []
    for start, end in pairwise(starts):
        query = q[start].float() if cls else q[start:end].float().mean(0)
        parts.append((k[start:end].float() * (query * scale)).sum((1, 2)))
    return torch.cat(parts) if parts else torch.zeros(0, device=q.device)
