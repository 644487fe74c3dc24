"""`random`: the control that a method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.hashing import mix, uniform
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class Random(Method):
    """Keep rows at random, others in every layer and head.

    A control, no paper. The score of a token is a hash of (seed, layer, head, position): a dropped token would have
    been dropped at any other moment too, and nothing is drawn.
    """

    defer: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        heads = rows.first_head + rows.pos.new_tensor(range(rows.pos.shape[0]))[:, None]
        return uniform(mix(mix(mix(rows.seed, rows.layer), heads), rows.pos))
