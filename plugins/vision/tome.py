"""`tome`: rows with similar keys merged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from thriftree.plugins.vision.base import LAYER, Method
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower
from thriftree.plugins.vision.merging import halve


@dataclass(frozen=True)
class ToMe(Method):
    """Merge rows whose attention keys in the vision tower are similar.

    In a round every second row may go into the one between whose key is the most similar; the most similar ones go.

    Paper: ToMe, arXiv 2210.09461. It merges a few rows in every layer of the tower; this merges as many, round by
    round, after the tower, by the keys of one layer. So it saves nothing in the tower, and no layer sees merged rows.
    """

    paper: ClassVar[str] = "2210.09461"
    merges: ClassVar[bool] = True
    per_round: float = field(
        default=0.1, metadata={"minimum": 0.01, "maximum": 0.5, "description": "share of the rows that a round merges"}
    )
    layer: int = field(default=-1, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "keys"),)

    def select(self, image: Image) -> Selection:
        return halve(image, image.read("keys"), self.per_round).selection(image)
