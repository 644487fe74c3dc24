"""An image's views and tiles, and an exact count shared out over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thriftree.plugins.vision.image import Layout


def split(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """`total` in proportion to `weights` by largest remainder (ties: the first), no part above its `room`.

    What a full part cannot take goes to the others in proportion; all weights 0: equal ones. Sums to `total` exactly
    where the room allows it.
    """
    counts = [0] * len(room)
    left = min(total, sum(room))
    while left > 0:
        open_parts = [part for part in range(len(room)) if counts[part] < room[part]]
        whole = sum(weights[part] for part in open_parts)
        ideal = {part: left * (weights[part] / whole if whole > 0 else 1 / len(open_parts)) for part in open_parts}
        given = {part: min(int(ideal[part]), room[part] - counts[part]) for part in open_parts}
        if not any(given.values()):  # less than one each
            ranked = sorted(open_parts, key=lambda part: (int(ideal[part]) - ideal[part], part))
            given = dict.fromkeys(ranked[:left], 1)
        for part, count in given.items():
            counts[part] += count
            left -= count
    return counts


def tile_of(layout: Layout, view: int) -> Tensor:
    """``[N]`` int64: the tile of each row if `view` were cut into `layout.tiles` (meant for rows of that view).

    Padding that was cut off again is taken to be the same on both sides, as the processors make it.
    """
    down, across = layout.tiles
    height, width = layout.shape(view)
    return (layout.row * down // max(height, 1)) * across + layout.col * across // max(width, 1)


def parts(layout: Layout) -> list[Tensor]:
    """Places of the rows of the only view or thumbnail, then of each tile; none is empty."""
    tile = torch.where(layout.view == 0, -1, tile_of(layout, 1))
    return [(tile == part).nonzero().flatten() for part in tile.unique().tolist()]
