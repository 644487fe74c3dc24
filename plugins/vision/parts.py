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
    counts, left = [0] * len(room), min(total, sum(room))
    open_parts = [part for part in range(len(room)) if room[part]]
    while open_parts:
        whole = sum(weights[part] for part in open_parts)
        ideal = {part: left * (weights[part] / whole if whole > 0 else 1 / len(open_parts)) for part in open_parts}
        full = [part for part in open_parts if ideal[part] >= room[part]]
        for part in full or open_parts:
            counts[part] = room[part] if full else int(ideal[part])
            left -= counts[part]
        if not full:
            for part in sorted(open_parts, key=lambda part: (counts[part] - ideal[part], part))[:left]:
                counts[part] += 1
            break
        open_parts = [part for part in open_parts if part not in full]
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
