"""`recoverable`: rows that the encoder looks at, rows that the question names, and a few that sum up the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.kernels.vision_select import max_min
from thriftree.plugins.vision.base import LAYER, Method, best
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower
from thriftree.plugins.vision.merging import cosine
from thriftree.plugins.vision.parts import split


@dataclass(frozen=True)
class Recoverable(Method):
    """Keep what the CLS token attends to, recover what the question's words are like, and sum up the rest.

    Of the budget, `visual` go by attention and `textual` by likeness to the question; the others are centres, far from
    each other, to which the `neighbours` rows nearest by key are added, each times its attention.

    Paper: Recoverable Compression, arXiv 2409.01179. It finds how many rows of each kind by outlier tests, here the
    split is fixed, and centres are the farthest rows, not the outliers. It compares the question as CLIP's text tower
    sees it; these models have none, so a row's likeness is its largest cosine, after the projector, with the language
    model's embedding of one of the question's tokens. A projector that was not trained to land near them gives noise.
    Without a question that part goes by attention, too.
    """

    paper: ClassVar[str] = "2409.01179"
    needs_text: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    visual: float = field(
        default=0.6, metadata={"minimum": 0.0, "maximum": 1.0, "description": "share of the budget by attention"}
    )
    textual: float = field(
        default=0.3, metadata={"minimum": 0.0, "maximum": 1.0, "description": "share by likeness to the question"}
    )
    neighbours: int = field(
        default=32, metadata={"minimum": 0, "maximum": 1024, "description": "rows that are added to each centre"}
    )
    layer: int = field(default=-1, metadata=LAYER)

    def check(self, tower: Tower | None) -> None:
        super().check(tower)
        if self.visual + self.textual > 1 + 1e-9:
            raise ValueError(f"textual: with visual it may make up 1, got {self.visual:g} and {self.textual:g}")

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        layer = tower.layer(self.layer)
        return Tap(layer, "cls"), Tap(layer, "keys")

    def select(self, image: Image) -> Selection:
        attention = image.read("cls").float()
        centres = max(0.0, 1 - self.visual - self.textual)
        visual, textual, summed = split(image.keep, [self.visual, self.textual, centres], [image.keep] * 3)
        stays = torch.zeros_like(attention, dtype=torch.bool)
        for scores, count in ((attention, visual), (_likeness(image, attention), textual)):
            left = (~stays).nonzero().flatten()
            stays[left[best(scores[left], count)]] = True
        features = image.features.float().clone()
        if summed:
            left = (~stays).nonzero().flatten()
            chosen = left[max_min(image.unit[left], summed, int(attention[left].argmax()))]
            others = left[~torch.isin(left, chosen)]
            features[chosen] += self._around(image, attention, chosen, others)
            stays[chosen] = True
        rows = stays.nonzero().flatten()
        return Selection(rows, features[rows].to(image.features.dtype))

    def _around(self, image: Image, attention: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
        """``[c, D]``: what each centre gets from the rows that are neither kept nor centres."""
        keys = image.read("keys")
        near = cosine(keys[chosen], keys[others]).sort(dim=1, descending=True, stable=True).indices
        near = others[near[:, : self.neighbours]]
        return (attention[near][..., None] * image.features[near].float()).sum(dim=1)


def _likeness(image: Image, attention: Tensor) -> Tensor:
    if image.text is None or not len(image.text):
        return attention
    return cosine(image.features, image.text).amax(dim=1)
