"""`razor_attention`: retrieval heads keep everything, the others the first and newest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class RazorAttention(Method):
    """Keep everything in the retrieval heads, sinks and the newest rows in all others.

    Retrieval heads are those of the model's head file (`thriftree probe heads`): they look back at earlier
    occurrences of the current token. The others get what is left of the same budget.

    Paper: RazorAttention, arXiv 2407.15891. The paper's budget of the other heads is max(4000, a fifth of the
    prompt), here it is the request's; its compensation row (the mean of what was dropped, with the weight of all of
    it) is left out: in all layers of our default model it did harm.
    """

    paper: ClassVar[str] = "2407.15891"
    retrieval: ClassVar[bool] = True
    defer: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        return rows.pos.double()
