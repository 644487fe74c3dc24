"""`divprune`: rows that are as far from each other as can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thriftree.kernels.vision_select import max_min
from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image, Selection


@dataclass(frozen=True)
class DivPrune(Method):
    """Keep rows whose smallest cosine distance to each other is large.

    Begins with the most isolated row and adds the one farthest from all kept so far, until there are `keep` of them.

    Paper: DivPrune, arXiv 2503.02175. It asks neither what the encoder looks at nor what the question is about: rows of
    noise are far from everything and stay.
    """

    paper: ClassVar[str] = "2503.02175"

    def select(self, image: Image) -> Selection:
        return Selection(max_min(image.unit, image.keep, None).sort().values)
