"""`observed`: mean attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class Observed(Method):
    """Keep the rows with the largest mean attention over the queries that could see them.

    H2O's sum (arXiv 2306.14048) divided by the number of its terms, and no half of the budget for the newest rows:
    the form that the evaluation harness kvpress calls observed attention. Queries after an eviction weigh only what
    is left.
    """

    paper: ClassVar[str] = "2306.14048"
    observes: ClassVar[bool] = True

    def score(self, rows: Rows) -> Tensor:
        assert rows.sums is not None
        return rows.sums / (rows.age + 1)
