"""`keyformer`: H2O's sums with Gumbel noise and a rising temperature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.h2o import H2O
from thriftree.plugins.kv_cache.hashing import mix, uniform
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class Keyformer(H2O):
    """Keep the rows with the largest sum of regularised attention so far, and some of the newest.

    What a query adds to the sums is the softmax of its logits plus Gumbel noise, over a temperature that rises from
    `tau_start` (the prompt) to `tau_end` (`steps` tokens into the answer). The model's own attention has no noise.

    Paper: Keyformer, arXiv 2403.09054. The noise is a hash of (seed, layer, head, query, key), so that a repeated
    request repeats its choice. The paper raises the temperature over the answer's longest length; here, over
    `steps`, the pace of its public code where no length is known. Sums are over the query heads of a KV head.
    Without noise and with temperature 1 it is `h2o`.
    """

    paper: ClassVar[str] = "2403.09054"
    recent_share: float = field(
        default=0.3, metadata={"minimum": 0.0, "maximum": 1.0, "description": "share of the rows for the newest tokens"}
    )
    noise: float = field(default=1.0, metadata={"minimum": 0.0, "maximum": 16.0, "description": "factor of the noise"})
    tau_start: float = field(
        default=1.0, metadata={"minimum": 0.0625, "maximum": 16.0, "description": "temperature in the prompt"}
    )
    tau_end: float = field(
        default=2.0, metadata={"minimum": 0.0625, "maximum": 16.0, "description": "temperature after `steps` tokens"}
    )
    steps: int = field(
        default=100, metadata={"minimum": 1, "maximum": 1000000, "description": "tokens of the answer until `tau_end`"}
    )

    def weigh(self, logits: Tensor, rows: Rows, at: Tensor) -> Tensor:
        if self.noise:
            logits = logits + self.noise * self._gumbel(logits.shape[:2], rows, at)
        return torch.softmax(logits / self._temperature(rows, at)[:, None], dim=-1)

    def _temperature(self, rows: Rows, at: Tensor) -> Tensor:
        step = (at - (rows.prompt - 1)).clamp(0, self.steps)  # the last row of the prompt is step 0
        return self.tau_start + step * ((self.tau_end - self.tau_start) / self.steps)

    def _gumbel(self, heads: tuple[int, int], rows: Rows, at: Tensor) -> Tensor:
        first = rows.first_head * heads[1]
        head = torch.arange(first, first + heads[0] * heads[1], device=at.device).view(*heads, 1, 1)
        query = mix(mix(mix(rows.seed, rows.layer), head), at[:, None])
        return uniform(mix(query, rows.pos[:, None, None])).log_().neg_().log_().neg_()
