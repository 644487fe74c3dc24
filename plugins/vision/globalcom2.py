"""`globalcom2`: the thumbnail says how many rows each tile may keep, and helps to say which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from thriftree.plugins.vision.base import LAYER, Method, best
from thriftree.plugins.vision.image import Image, Layout, Selection, Tap, Tower
from thriftree.plugins.vision.parts import parts, split, tile_of


@dataclass(frozen=True)
class GlobalCom2(Method):
    """Give each tile of an image a share of the budget by what the thumbnail attends to there.

    The score is the CLS token's attention before the softmax. The share of a tile grows with the sum of the thumbnail's
    scores in its region; in a tile a row's score is its own plus the thumbnail's at that place, each scaled to length
    1 over the tile. An image without tiles keeps its best rows.

    Paper: GlobalCom2, arXiv 2501.05179. The counts are rounded by largest remainder, so that the total is exact.
    """

    paper: ClassVar[str] = "2501.05179"
    temperature: float = field(
        default=10.0, metadata={"minimum": 0.01, "maximum": 10000.0, "description": "higher: tiles share more evenly"}
    )
    layer: int = field(default=-1, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "cls_logits"),)

    def select(self, image: Image) -> Selection:
        scores, layout = image.read("cls_logits").float(), image.layout
        thumbnail = layout.view == 0
        if bool(thumbnail.all()) or not bool(thumbnail.any()):
            return Selection(best(scores, image.keep))
        field_, places = upsampled(scores, layout), parts(layout)
        shares = self.shares(scores, image)
        sizes = [len(part) for part in places]
        counts = split(image.keep, [size * share for size, share in zip(sizes, shares, strict=True)], sizes)
        kept = [part[best(scores[part], count)] for part, count in zip(places[:1], counts, strict=False)]
        for part, count in zip(places[1:], counts[1:], strict=True):
            local = normalize(scores[part], dim=0) + normalize(field_[part], dim=0)
            kept.append(part[best(local, count)])
        return Selection(torch.cat(kept).sort().values)

    def shares(self, scores: Tensor, image: Image) -> list[float]:
        """The share of its rows that the thumbnail and then each tile keeps, before rounding."""
        layout, share = image.layout, image.keep / image.features.shape[0]
        thumbnail = layout.view == 0
        region = tile_of(layout.pick(thumbnail.nonzero().flatten()), 0)
        there = tile_of(layout, 1)[~thumbnail].unique()
        mass = torch.zeros(layout.tiles[0] * layout.tiles[1], device=scores.device)
        mass = mass.index_add_(0, region, scores[thumbnail])[there]
        heat = torch.softmax(mass / self.temperature, dim=0)
        return [share, *(share * (1 + heat - heat.mean())).clamp(max=1.0).tolist()]


def upsampled(scores: Tensor, layout: Layout) -> Tensor:
    """``[N]``: the thumbnail's scores, bilinear, where each row of the tiles stands (rows of the thumbnail: anything).

    The thumbnail shows the whole image, so its grid is stretched over the tiles' one.
    """
    thumbnail = (layout.view == 0).nonzero().flatten()
    grid = scores.new_zeros(layout.shape(0))
    grid[layout.row[thumbnail], layout.col[thumbnail]] = scores[thumbnail]
    height, width = layout.shape(1)
    large = interpolate(grid[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    return large[layout.row.clamp(max=height - 1), layout.col.clamp(max=width - 1)]
