"""`aim`: similar rows merged pair by pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image, Selection
from thriftree.plugins.vision.merging import halve


@dataclass(frozen=True)
class AIM(Method):
    """Merge rows that are similar, halving their number round by round.

    In a round every second row goes into the most similar of those between, the most similar pairs first, until half
    of the rows are left or `keep` are.

    Paper: AIM, arXiv 2412.03248, stage 1 (its stage 2 prunes inside the language model). A merged row is the mean of
    all that went into it; the paper's code takes the mean of two means. Rows stay in the image's order.
    """

    paper: ClassVar[str] = "2412.03248"
    merges: ClassVar[bool] = True
    per_round: float = field(
        default=0.5, metadata={"minimum": 0.01, "maximum": 0.5, "description": "share of the rows that a round merges"}
    )

    def select(self, image: Image) -> Selection:
        return halve(image, image.features.float(), self.per_round).selection(image)
