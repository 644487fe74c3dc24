"""`knorm`: keys of small norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows

_BITS = 12


@dataclass(frozen=True)
class Knorm(Method):
    """Keep the rows whose keys have the smallest norm.

    Paper: L2-norm KV compression, arXiv 2406.11430: in many models, keys of small norm draw much attention. The paper
    leaves the first layers alone; here every compressed layer is treated alike, the sinks and recent rows are kept.
    In the first layer, equal tokens have equal norms up to the last bits, which depend on who was computed beside them.
    So norms are rounded to `_BITS` bits, and among equal ones the newer row stays.
    """

    paper: ClassVar[str] = "2406.11430"
    defer: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        fraction, exponent = torch.frexp(rows.keys.norm(dim=-1))
        return -torch.ldexp((fraction * 2**_BITS).round(), exponent - _BITS)
