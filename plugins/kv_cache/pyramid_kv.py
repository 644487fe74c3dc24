"""`pyramid_kv`: SnapKV with more rows near the input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from thriftree.plugins.kv_cache.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's score with budgets that fall linearly from the first layers to the last.

    The last tier gets ``1 / beta`` of the mean budget, the first ``2 - 1 / beta``.

    Paper: PyramidKV, arXiv 2406.02069. There every layer has its own budget; here layers come in a few tiers, since
    layers of one budget share a block table.
    """

    paper: ClassVar[str] = "2406.02069"
    beta: float = field(
        default=20.0,
        metadata={"minimum": 1.0, "maximum": 1000.0, "description": "mean budget over the smallest (1: all alike)"},
    )

    def share(self, tier: int, tiers: int) -> float:
        if tiers == 1:
            return 1.0
        least = 1.0 / self.beta
        return (2.0 - least) + (2.0 * least - 2.0) * tier / (tiers - 1)
