"""`todre`: k-center from the row that the encoder looks at most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from thriftree.kernels.vision_select import max_min
from thriftree.plugins.vision.base import LAYER, Method
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower


@dataclass(frozen=True)
class ToDRE(Method):
    """Keep rows that are far from each other, beginning with the one the CLS token attends to most.

    `divprune` with another start: in images with tiles the thumbnail's row of most attention.

    Paper: ToDRE, arXiv 2505.18757, stage 1. Texts about it describe three rules for the next row (lowest summed
    similarity, largest sum, k-center); this is k-center. Without a CLS token the start is the row that receives most
    attention.
    """

    paper: ClassVar[str] = "2505.18757"
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "cls"),)

    def select(self, image: Image) -> Selection:
        attention = image.read("cls")
        thumbnail = image.layout.view == image.layout.view.min()
        start = int(attention.float().masked_fill(~thumbnail, -1.0).argmax())
        return Selection(max_min(image.unit, image.keep, start).sort().values)
