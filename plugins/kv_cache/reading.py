"""Methods that drop nothing and read less: between full steps, a step attends to the blocks that mattered last time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method


@dataclass(frozen=True)
class ReadMethod(Method):
    """`score` says how much a full step's queries attend to each row; blocks are ranked by the sum of their rows."""

    reads: ClassVar[bool] = True
    stride: int = field(
        default=10, metadata={"minimum": 1, "maximum": 1024, "description": "tokens from one full step to the next"}
    )

    def blocks(self, weight: Tensor, most: int) -> Tensor:
        """``[H]`` how many blocks to read, `most` at most, for ``weight [H, blocks]``."""
        return torch.full((weight.shape[0],), min(most, weight.shape[1]))

    def checks(self) -> int:
        """Tokens after which `stale` is asked; 0: never."""
        return 0

    def stale(self, then: Tensor, now: Tensor) -> bool:
        """Whether the choice is out of date: queries ``[layers, heads, D]`` of the last full step, and of now."""
        return False
