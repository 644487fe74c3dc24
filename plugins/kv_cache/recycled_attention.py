"""`recycled_attention`: most steps read the blocks that the last full step attended to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class RecycledAttention(ReadMethod):
    """Read the whole cache every `stride` tokens, and in between the blocks that step attended to most, and the newest.

    Saves reads, not memory: the cache stays whole. Every `check_every` tokens the query is compared with the one that
    chose: where it has turned away (mean cosine over layers and heads below `similarity`), the next step reads all.

    Paper: Recycled Attention, arXiv 2411.05787. There single rows are chosen and each new one pushes one out; here
    whole blocks, each head its own, and what is new since the full step is read besides. The first choice is made
    by the prompt's last token.
    """

    paper: ClassVar[str] = "2411.05787"
    window: ClassVar[int] = 1
    check_every: int = field(
        default=5, metadata={"minimum": 0, "maximum": 1024, "description": "tokens between looks at the query; 0: none"}
    )
    similarity: float = field(
        default=0.8, metadata={"minimum": -1.0, "maximum": 1.0, "description": "least cosine to keep the choice"}
    )

    def score(self, rows: Rows) -> Tensor:
        assert rows.queries is not None
        logits = torch.einsum("hgd,hmd->hgm", rows.queries[:, :, -1], rows.keys) * rows.scale
        return logits.softmax(dim=-1).mean(dim=1)

    def checks(self) -> int:
        return self.check_every

    def stale(self, then: Tensor, now: Tensor) -> bool:
        return float(cosine_similarity(then.float(), now.float(), dim=-1).mean()) < self.similarity
