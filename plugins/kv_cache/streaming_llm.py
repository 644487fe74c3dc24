"""`streaming_llm`: the first tokens and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class StreamingLLM(Method):
    """Keep the sinks and the newest rows.

    Paper: StreamingLLM, arXiv 2309.17453. There, keys are cached before their rotation and get the position of their
    place in the cache; here tokens keep their positions, so a text does not get longer than the model was trained for.
    """

    paper: ClassVar[str] = "2309.17453"
    defer: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        return rows.pos.double()
