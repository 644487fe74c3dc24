"""`lagkv`: rows that vary over the channels, measured by what follows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class LagKV(Method):
    """Keep, of every stretch of the text, the rows that stand out against the stretch that follows.

    Keys and values of `lag` rows are normalised channel by channel to the range of the next `lag` rows; a row's
    score is the softmax, within its stretch, of its standard deviation over channels, the mean of keys and values.
    The newest stretch, which nothing follows, stays.

    Paper: LagKV, arXiv 2504.04704. Its lag is 128; ours is 32, since a stretch that always stays has to be small
    against the budget. The paper scores a stretch once, and skips the sinks; here stretches are cut anew among the
    rows that are still cached, from the oldest one on.
    """

    paper: ClassVar[str] = "2504.04704"
    lag: int = field(default=32, metadata={"minimum": 2, "maximum": 1024, "description": "rows of a stretch"})
    across: bool = field(
        default=False, metadata={"description": "compare scores across stretches (else each keeps an equal share)"}
    )

    def score(self, rows: Rows) -> Tensor:
        heads, count = rows.pos.shape
        stretches = max(count // self.lag - 1, 0)  # that another one follows
        order = rows.pos.argsort(dim=1)
        ranked = torch.full((heads, count), torch.inf, device=rows.pos.device)
        if stretches:
            seen = order[:, : (stretches + 1) * self.lag]
            score = (self._spread(rows.keys, seen) + self._spread(rows.values, seen)) / 2  # [H, stretches, lag]
            if not self.across:
                score = score.argsort(dim=-1).argsort(dim=-1) / self.lag
            ranked[:, : stretches * self.lag] = score.flatten(1)
        return torch.empty_like(ranked).scatter_(1, order, ranked)

    def _spread(self, x: Tensor, order: Tensor) -> Tensor:
        heads, count, channels = x.shape
        at = order + count * torch.arange(heads, device=x.device)[:, None]
        x = x.flatten(0, 1).index_select(0, at.flatten()).view(heads, -1, self.lag, channels)
        low, high = x[:, 1:].amin(dim=2, keepdim=True), x[:, 1:].amax(dim=2, keepdim=True)
        x = (x[:, :-1] - low) / (high - low).clamp_min(1e-6)
        # The standard deviation; `std` itself takes ten times as long on a CPU.
        return ((x - x.mean(dim=-1, keepdim=True)).norm(dim=-1) / (channels - 1) ** 0.5).softmax(dim=-1)
