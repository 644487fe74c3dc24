"""`h2o`: heavy hitters, and half of the budget for the newest rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class H2O(Method):
    """Keep the rows with the largest sum of attention so far, and as many of the newest.

    Paper: H2O, arXiv 2306.14048. Sums are over the query heads of a KV head, too, which the paper's models do not
    share. Old tokens were looked at by more queries, so sums favour them: that is the paper's rule, and `observed`
    is the other.
    """

    paper: ClassVar[str] = "2306.14048"
    observes: ClassVar[bool] = True
    recent_share: float = field(
        default=0.5, metadata={"minimum": 0.0, "maximum": 1.0, "description": "share of the rows for the newest tokens"}
    )

    def score(self, rows: Rows) -> Tensor:
        assert rows.sums is not None
        return rows.sums.masked_fill(rows.age < int(self.recent_share * rows.keep), torch.inf)
