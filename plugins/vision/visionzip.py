"""`visionzip`: rows that the encoder looks at, and the others merged into a few."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from thriftree.plugins.vision.base import LAYER, Method, best
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower
from thriftree.plugins.vision.merging import Groups, cosine
from thriftree.plugins.vision.stride import spaced


@dataclass(frozen=True)
class VisionZip(Method):
    """Keep the rows that the CLS token attends to most, and merge the others into evenly spaced ones of them.

    A share `contextual` of the budget goes to the merged rows: each row that is not kept goes into the one among them
    whose key in the vision tower is the most similar.

    Paper: VisionZip, arXiv 2412.04467. It adds the mean of what was merged to the row before the projector; after it
    this would double the row's length, so here it is the mean of the two. The CLS token itself is no row here. Without
    one: the attention received.
    """

    paper: ClassVar[str] = "2412.04467"
    merges: ClassVar[bool] = True
    contextual: float = field(
        default=0.156, metadata={"minimum": 0.0, "maximum": 1.0, "description": "share of the budget for merged rows"}
    )
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        layer = tower.layer(self.layer)
        return Tap(layer, "cls"), Tap(layer, "keys")

    def select(self, image: Image) -> Selection:
        attention, keys = image.read("cls"), image.read("keys")
        owner = Groups.of(image).owner
        merged = round(image.keep * self.contextual)
        stays = torch.zeros(len(owner), dtype=torch.bool, device=owner.device)
        stays[best(attention, image.keep - merged)] = True
        others = owner[~stays]
        if not merged:
            return Selection(owner[stays])
        targets = others[spaced(len(others), merged).to(others.device)]
        stays[targets] = True
        rest = owner[~stays]
        owner[rest] = targets[cosine(keys[rest], keys[targets]).argmax(dim=1)]
        groups = Groups(owner)
        share = torch.ones_like(attention, dtype=torch.float32)
        sizes = torch.bincount(owner, minlength=len(owner))
        share[rest] = 1 / (sizes[owner[rest]] - 1).float()
        return groups.selection(image, share)
