"""Two scores at once: a row stays if either of them ranks it high. Tried here before it is anybody's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class Blend(Method):
    """The score is the better of a row's ranks under two methods, each taken within the head."""

    window: ClassVar[int] = 32
    observes: ClassVar[bool] = True
    needs_rope: ClassVar[bool] = True
    first: str = "observed"
    second: str = "keydiff"

    def score(self, rows: Rows) -> Tensor:
        ranks = [_rank(registry.configure(name).score(rows)) for name in (self.first, self.second)]
        return torch.maximum(*ranks)


def _rank(score: Tensor) -> Tensor:
    """``[H, M]`` in (0, 1], 1 for the highest of its head."""
    return (score.argsort(dim=1).argsort(dim=1) + 1) / score.shape[1]
