"""Head blocks dealt out anew to the heads of some layers, and what has to move for it. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Cells that move, where to, and where each layer's begin: what `kernels.kv_rows.Mover` takes.
Moves = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Deal:
    """``L`` layers, ``H`` heads with up to ``nb`` full head blocks each so far and ``most`` from now on."""

    dealt: Tensor  # [L, H, most] head blocks of each head, in order
    block: int
    _stay: tuple[Tensor, ...]  # [n] each: layer, head, old and new number of the head blocks that a head keeps
    _moving: Tensor  # [L, H, nb * block] bool
    _empty: Tensor  # [L, H, most * block] bool, in the same order what they fill
    _across: Tensor  # [moving rows] bool: of heads that get blocks of others

    @classmethod
    def of(cls, table: Tensor, stays: Tensor, shares: Tensor, mask: Tensor, block: int) -> Deal:
        """A head keeps the first of its blocks that stay, up to its share; the rest is dealt to those that need more.

        Args:
            table: ``[L, H, nb]`` head blocks.
            stays: ``[L, H, nb]`` bool, those that the layer still has afterwards.
            shares: ``[L, H]`` head blocks of each head afterwards; as many in each layer as stay there.
            mask: ``[L, H, nb * block]`` bool, rows that stay: as many in each head as its share holds.
        """
        rank = stays.cumsum(2) - 1
        mine = stays & (rank < shares[..., None])
        had = mine.sum(2)
        layer, head, old = mine.nonzero(as_tuple=True)
        new = rank[mine]
        number = torch.arange(int(shares.max()))
        fresh = (number >= had[..., None]) & (number < shares[..., None])
        dealt = table.new_zeros(fresh.shape)
        dealt[layer, head, new] = table[mine]
        dealt[fresh] = table[stays & ~mine]  # in each layer as many
        moving = mask & ~mine.repeat_interleave(block, 2)
        empty = fresh[..., None].repeat(1, 1, 1, block)
        empty[layer, head, new] = ~mask.unflatten(2, (-1, block))[layer, head, old]
        at = moving.nonzero(as_tuple=True)
        across = (shares > had)[at[0], at[1]]
        return cls(dealt, block, (layer, head, old, new), moving, empty.flatten(2), across)

    def moves(self, table: Tensor) -> list[Moves]:
        """In this order: within heads, then into blocks that other heads have left by then."""
        cells = torch.arange(self.block)
        sources = (table[..., None] * self.block + cells).flatten(2)[self._moving]
        targets = (self.dealt[..., None] * self.block + cells).flatten(2)[self._empty]
        layer = self._moving.nonzero(as_tuple=True)[0]
        found = []
        for part in (~self._across, self._across):
            ends = torch.zeros(table.shape[0] + 1, dtype=torch.int64)
            torch.cumsum(torch.bincount(layer[part], minlength=table.shape[0]), 0, out=ends[1:])
            found.append((sources[part], targets[part], ends))
        return found

    def arranged(self, values: Tensor) -> Tensor:
        """``[L, H, most * block]``: what is known of each old row ``[L, H, nb * block]``, where the row is now."""
        layer, head, old, new = self._stay
        out = values.new_zeros(*self.dealt.shape, self.block)
        out[layer, head, new] = values.unflatten(2, (-1, self.block))[layer, head, old]
        out = out.flatten(2)
        out[self._empty] = values[self._moving]
        return out
