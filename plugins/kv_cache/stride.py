"""`stride`: evenly spaced tokens, the same ones in all heads and layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows

#: 2^32 over the golden ratio.
_STEP = 2654435769


@dataclass(frozen=True)
class Stride(Method):
    """Keep evenly spaced rows, the same in every layer and head.

    A control, no paper. The score is the fractional part of position times golden ratio: the positions above any
    threshold lie in at most three different distances from each other, so the rows are evenly spaced at every budget,
    and stay so however often the cache is compressed.
    """

    defer: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        return (rows.pos * _STEP % 2**32).double()
