"""`snapkv`: what the newest queries look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from thriftree.kernels.kv_rows import column_sums
from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class SnapKV(Method):
    """Keep the rows that the newest queries attend to, and their neighbours.

    The attention probabilities of the last `queries` tokens are averaged, smoothed along the text over `kernel`
    rows and averaged over the query heads of a KV head. The rows of these tokens themselves stay.

    Paper: SnapKV, arXiv 2404.14469, which is for models with as many KV heads as query heads; the mean over the
    group is the usual reading for the others. It wants the question at the prompt's end: asked later, it keeps
    fewer facts than `random`. Neighbours are those still cached.
    """

    paper: ClassVar[str] = "2404.14469"
    window: ClassVar[int] = 32
    queries: int = field(
        default=32, metadata={"minimum": 1, "maximum": 32, "description": "newest tokens whose attention is looked at"}
    )
    kernel: int = field(
        default=5, metadata={"minimum": 1, "maximum": 63, "description": "rows that a score is averaged over"}
    )

    def score(self, rows: Rows) -> Tensor:
        assert rows.queries is not None
        queries, at = rows.queries[:, :, -self.queries :].float(), rows.query_pos[-self.queries :].to(rows.pos.device)
        own = rows.pos >= at[0]
        seen = column_sums(queries, rows.keys, rows.pos, at, rows.scale, mean=True).masked_fill_(own, 0.0)
        return self._smooth(seen, rows.pos).masked_fill(own, torch.inf)

    def _smooth(self, seen: Tensor, pos: Tensor) -> Tensor:
        order = pos.argsort(dim=1)
        pooled = avg_pool1d(seen.gather(1, order), self.kernel, stride=1, padding=self.kernel // 2)
        return torch.empty_like(seen).scatter_(1, order, pooled[:, : seen.shape[1]])
