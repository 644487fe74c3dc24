"""`vflowopt`: rows that the global rows look at, and one stand-in for what is dropped in each cell of a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.vision.base import LAYER, Method, best
from thriftree.plugins.vision.image import Image, Layout, Selection, Tap, Tower
from thriftree.plugins.vision.merging import Groups


@dataclass(frozen=True)
class VFlowOpt(Method):
    """Keep the rows that the image's global rows attend to, and recycle what is dropped.

    Global rows receive over `threshold` times the mean attention; importance is the mean attention that they give.
    The image is cut into cells of `cell` of its sides; in 1 / cell^2 of them, those of most dropped importance, the
    best dropped row stands for all dropped ones, as their mean by importance.

    Paper: VFlowOpt, arXiv 2508.05211, its first stage at a fixed budget. Left out are the stages inside the language
    model, the search for a model's settings (the defaults lie between the published ones; a cell there is patches of
    one fixed grid) and the entropy of the pixels, which those settings switch off. A cell without dropped rows leaves
    its place to the next best row.
    """

    paper: ClassVar[str] = "2508.05211"
    merges: ClassVar[bool] = True
    threshold: float = field(
        default=30.0, metadata={"minimum": 0.0, "maximum": 1000.0, "description": "times the mean: a global row"}
    )
    cell: float = field(
        default=0.577,
        metadata={
            "minimum": 0.05,
            "maximum": 1.0,
            "description": "side of a recycling cell as a share of the image's",
        },
    )
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "global", self.threshold),)

    def select(self, image: Image) -> Selection:
        importance, cells = image.read("global").float(), cell_of(image.layout, self.cell)
        order = importance.sort(descending=True, stable=True).indices
        views = len(image.layout.view.unique())
        recycled = min(int(views / self.cell**2), image.keep - 1)
        # Rows that stay in place of empty cells may empty further ones.
        while recycled > (there := len(cells[order[image.keep - recycled :]].unique())):
            recycled = there
        single, dropped = order.split((image.keep - recycled, len(order) - image.keep + recycled))
        owner = torch.full_like(order, -1)
        owner[single] = single
        owner[dropped] = stand_ins(dropped, cells[dropped], importance[dropped], recycled)
        return Groups(owner).selection(image, importance)


def cell_of(layout: Layout, side: float) -> Tensor:
    """``[N]`` int64: a number for each cell, `side` of a view's height and width, no cell over two views."""
    across = ceil(1 / side)
    cell = torch.zeros_like(layout.view)
    for view in layout.view.unique().tolist():
        height, width = layout.shape(view)
        down = (layout.row / (height * side)).long() * across + (layout.col / (width * side)).long()
        cell = torch.where(layout.view == view, view * across * across + down, cell)
    return cell


def stand_ins(dropped: Tensor, cells: Tensor, importance: Tensor, count: int) -> Tensor:
    """Of each dropped row: the first of its cell, in the `count` cells of most importance; elsewhere -1."""
    names, cell = cells.unique(return_inverse=True)
    weight = torch.zeros(len(names), dtype=torch.float64, device=cells.device)
    weight.index_add_(0, cell, importance.double())
    place = torch.arange(len(dropped), device=cells.device)
    first = torch.full_like(names, len(dropped)).scatter_reduce_(0, cell, place, "amin")
    taken = torch.zeros_like(names, dtype=torch.bool)
    taken[best(weight, count)] = True
    return torch.where(taken[cell], dropped[first[cell]], -1)
