"""`avgpool`: the mean of each cell of a coarser grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image, Layout, Selection
from thriftree.plugins.vision.merging import Groups
from thriftree.plugins.vision.parts import split


@dataclass(frozen=True)
class AvgPool(Method):
    """Replace each cell of a coarser grid by its mean.

    A control, no paper. An image is cut into bands of lines, a band into cells; there are exactly as many cells as
    rows are kept, about square ones, so bands may differ by a cell. A cell stands at the patch nearest its centre.
    Views share the budget by size.
    """

    merges: ClassVar[bool] = True

    def select(self, image: Image) -> Selection:
        owner = torch.full_like(image.layout.view, -1)
        views = [(image.layout.view == view).nonzero().flatten() for view in image.layout.view.unique().tolist()]
        sizes = [len(view) for view in views]
        for view, count in zip(views, split(image.keep, sizes, sizes), strict=True):
            for band, cells in bands(image.layout.pick(view), count):
                _pool(owner, image.layout, view[band], cells)
        return Groups(owner).selection(image)


def bands(layout: Layout, count: int) -> list[tuple[Tensor, int]]:
    """Cuts one view: places of each band's rows, and its number of cells, in all `count`."""
    if not count:
        return []
    lines, line = layout.row.unique(return_inverse=True)
    height, longest = len(lines), int(torch.bincount(line).max())
    wanted = round(sqrt(count * height / longest))
    number = min(height, count, max(1, ceil(count / longest), wanted))
    band = line * number // height
    places = [(band == which).nonzero().flatten() for which in range(number)]
    more = split(count - number, [len(part) for part in places], [len(part) - 1 for part in places])
    return [(part, 1 + extra) for part, extra in zip(places, more, strict=True)]


def _pool(owner: Tensor, layout: Layout, band: Tensor, cells: int) -> None:
    """Writes the owners of a band: its rows column by column, in `cells` equal stretches."""
    row, col = layout.row[band], layout.col[band]
    order = (col * (row.max() + 1) + row).argsort(stable=True)
    for cell in order.tensor_split(cells):
        at = torch.stack((row[cell], col[cell]), dim=1).double()
        distance = (at - at.mean(dim=0)).square().sum(dim=1)
        centre = cell[distance == distance.min()].min()
        owner[band[cell]] = band[centre]
