"""The layers of one KV cache group as compression sees them: caches, moves, and their places in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thriftree.kernels import kv_rows
from thriftree.plugins.engine.cpu_cache import halves
from thriftree.plugins.engine.kv.plan import Tier


class GroupLayers:
    """Built once, when the caches are there. `L` layers, `H` KV heads."""

    def __init__(
        self,
        names: Sequence[str],
        layers: Sequence[Any],
        indices: Sequence[int],
        tier: Tier,
        retrieval: Sequence[tuple[int, ...]],
        first_head: int = 0,
    ) -> None:
        """`first_head`: the model's number of this rank's first KV head."""
        caches = [halves(layer.kv_cache) for layer in layers]
        self.names = tuple(names)
        self.indices = tuple(indices)  # of each layer in the model
        self.tier = tier
        self.retrieval = tuple(retrieval)  # retrieval heads of each layer
        self.first_head = first_head
        self.isa: str = layers[0].isa
        self.scales = [float(layer.impl.scale) for layer in layers]
        self.keys, self.values = [key for key, _ in caches], [value for _, value in caches]
        self.heads = self.keys[0].shape[1]
        self.move = kv_rows.Mover(self.keys, self.values, self.isa)

    def head_blocks(self, blocks: Tensor) -> Tensor:
        """``[H, nb]`` head blocks of each head in the regular layout, for block ids ``[nb]``."""
        return blocks.long()[None, :] * self.heads + torch.arange(self.heads)[:, None]

    def read(self, layer: int, table: Tensor, rows: int, keys: bool) -> Tensor:
        """``[H, rows, D]`` of the group's layer number `layer`."""
        cache = (self.keys if keys else self.values)[layer]
        return kv_rows.read(cache, table, rows, keys=keys, isa=self.isa)
