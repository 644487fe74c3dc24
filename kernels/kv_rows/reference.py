"""What the kernels must give, in plain torch: every layout, every device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from thriftree.kernels.kv_rows import grid


def read(cache: Tensor, table: Tensor, rows: int, *, keys: bool, isa: str) -> Tensor:
    """See `thriftree.kernels.kv_rows.read`."""
    heads, block = cache.shape[1:3]
    used = table[:, : -(-rows // block)].long()
    picked = grid.by_token(cache, keys, isa)[used // heads, used % heads]
    return picked.flatten(4).flatten(2, 3).flatten(1, 2)[:, :rows].contiguous()


def move(
    key_caches: Sequence[Tensor],
    value_caches: Sequence[Tensor],
    sources: Tensor,
    destinations: Tensor,
    offsets: Tensor,
    *,
    isa: str,
) -> None:
    """See `thriftree.kernels.kv_rows.Mover`."""
    wanted = (sources >= 0) & (destinations >= 0)
    ends = offsets.tolist()
    for layer, (first, last) in enumerate(pairwise(ends)):
        mine = wanted[first:last]
        here, there = sources[first:last][mine], destinations[first:last][mine]
        for caches, keys in ((key_caches, True), (value_caches, False)):
            view = grid.by_token(caches[layer], keys, isa)
            view[_place(there, caches[layer], view)] = view[_place(here, caches[layer], view)]


def _place(cells: Tensor, cache: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (heads, block), inner = cache.shape[1:3], view.shape[3]
    head_block, row = cells // block, cells % block
    return head_block // heads, head_block % heads, row // inner, row % inner


def cells(table: Tensor, rows: Tensor, block: int) -> Tensor:
    """Cells of the rows ``[H, n]`` of each head, by the heads' tables ``[H, nb]`` of head blocks."""
    return table.long().gather(1, rows // block) * block + rows % block


__all__ = ["cells", "move", "read"]
