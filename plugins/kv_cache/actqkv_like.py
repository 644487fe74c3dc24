"""`actqkv_like`: blocks retrieved by one query made of the recent ones that stand out. Our reading of ActQKV."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class ActqkvLike(ReadMethod):
    """Read the blocks that a probe query attends to, in each layer as many as hold a share of its attention.

    The probe is the mean of the newest `queries` queries, weighted by how far each is from their plain mean
    (softmax of the distance over `temperature`): tokens that activate the layer unusually speak for the window.

    Paper: ActQKV, arXiv 2502.13542, of which no code and no full formulas are public: probe, block score (sum of the
    probe's attention in the block) and cut-off (the fewest blocks that hold `mass` of it) are ours, so nothing that
    is measured with this says anything about ActQKV.
    """

    paper: ClassVar[str] = "2502.13542"
    window: ClassVar[int] = 32
    queries: int = field(
        default=32, metadata={"minimum": 1, "maximum": 32, "description": "newest tokens that the probe is made of"}
    )
    temperature: float = field(
        default=1.0, metadata={"minimum": 0.01, "maximum": 100.0, "description": "of the weights, in query units"}
    )
    mass: float = field(
        default=0.95, metadata={"minimum": 0.0, "maximum": 1.0, "description": "share of the attention to be read"}
    )

    def score(self, rows: Rows) -> Tensor:
        assert rows.queries is not None
        newest = rows.queries[:, :, -self.queries :]
        distance = (newest - newest.mean(dim=2, keepdim=True)).norm(dim=-1)
        weight = (distance / self.temperature).softmax(dim=2)
        probe = (weight[..., None] * newest).sum(dim=2)
        logits = torch.einsum("hgd,hmd->hgm", probe, rows.keys) * rows.scale
        return logits.softmax(dim=-1).mean(dim=1)

    def blocks(self, weight: Tensor, most: int) -> Tensor:
        shares = weight.sort(dim=1, descending=True).values.cumsum(dim=1)
        needed = (shares < self.mass * weight.sum(dim=1, keepdim=True)).sum(dim=1) + 1
        return needed.clamp(max=min(most, weight.shape[1]))
