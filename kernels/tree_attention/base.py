"""The one interface of all back ends."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Plan(Protocol):
    """A step's requests and trees, shared by its layers (see `thriftree.kernels.tree_attention.prepare`)."""

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        out: Tensor,
        scale: float,
        *,
        sliding_window: int = -1,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        alibi: Tensor | None = None,
    ) -> None:
        """Attention of one layer into `out`."""
