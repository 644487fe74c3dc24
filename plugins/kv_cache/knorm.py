"""`knorm`: keys of small norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class Knorm(Method):
    """Keep the rows whose keys have the smallest norm.

    Paper: L2-norm KV compression, arXiv 2406.11430: in many models, keys of small norm draw much attention. The paper
    leaves the first layers alone; here every compressed layer is treated alike, the sinks and recent rows are kept.
    """

    paper: ClassVar[str] = "2406.11430"
    defer: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        return -rows.keys.norm(dim=-1)
