"""`hiprune`: objects by a middle layer of the vision tower, the rest by a deep one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.vision.base import LAYER, Method, best
from thriftree.plugins.vision.image import Image, Layout, Selection, Tap, Tower
from thriftree.plugins.vision.parts import parts, split


@dataclass(frozen=True)
class HiPrune(Method):
    """Keep what a middle layer attends to with its neighbours, and what a deep layer attends to.

    A share `alpha` of the budget goes to the rows that receive most attention in the middle layer, each with the four
    around it; the others are those that receive most in the deep layer. A thumbnail and its tiles share the budget
    evenly.

    Paper: HiPrune, arXiv 2508.00553. Neighbours do not wrap around the image's edges here, as they do in its code.
    Its layers (9 of 24, 16 of 32) are counted from the end, which gives the same ones for CLIP-L.
    """

    paper: ClassVar[str] = "2508.00553"
    alpha: float = field(
        default=0.1,
        metadata={"minimum": 0.0, "maximum": 1.0, "description": "share of the budget for objects and neighbours"},
    )
    object_layer: int = field(default=-15, metadata=LAYER)
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return tuple(Tap(tower.layer(layer), "received") for layer in (self.object_layer, self.layer))

    def select(self, image: Image) -> Selection:
        middle, deep = image.read("received"), image.read("received", -1)
        places = parts(image.layout)
        counts = split(image.keep, [len(part) for part in places], [len(part) for part in places])
        kept = [
            part[self._in_part(middle[part], deep[part], image.layout.pick(part), count)]
            for part, count in zip(places, counts, strict=True)
            if count
        ]
        return Selection(torch.cat(kept).sort().values)

    def _in_part(self, middle: Tensor, deep: Tensor, layout: Layout, count: int) -> Tensor:
        chosen = torch.zeros(len(middle), dtype=torch.bool, device=middle.device)
        chosen[best(middle, max(1, round(count * self.alpha / 5)))] = True
        for scores, among in ((middle, around(chosen, layout)), (deep, torch.ones_like(chosen))):
            places = (among & ~chosen).nonzero().flatten()
            chosen[places[best(scores[places], count - int(chosen.sum()))]] = True
        return chosen.nonzero().flatten()


def around(chosen: Tensor, layout: Layout) -> Tensor:
    """``[N]`` bool: patches beside, above or below a chosen one."""
    row, col = layout.row - layout.row.min() + 1, layout.col - layout.col.min() + 1
    grid = chosen.new_zeros(int(row.max()) + 2, int(col.max()) + 2)
    grid[row[chosen], col[chosen]] = True
    return grid[row - 1, col] | grid[row + 1, col] | grid[row, col - 1] | grid[row, col + 1]
