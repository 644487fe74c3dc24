"""`fopru`: rows by the attention they get, one by one or as whole lines of the image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thriftree.plugins.vision.base import LAYER, Method
from thriftree.plugins.vision.image import Image, Tap, Tower


@dataclass(frozen=True)
class FoPru(Method):
    """Keep the rows that the encoder's CLS token attends to most.

    `rank` takes them one by one. `row` takes whole lines of the image, best mean first, for text that runs along
    them; what the count leaves over goes to the best rows of the next line.

    Paper: FoPru, arXiv 2411.14164, of which only the abstract was read. Without a CLS token: the attention received.
    """

    paper: ClassVar[str] = "2411.14164"
    strategy: Literal["rank", "row"] = field(
        default="rank", metadata={"description": "single rows, or whole lines of the image"}
    )
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "cls"),)

    def score(self, image: Image) -> Tensor:
        attention = image.read("cls").float()
        return attention if self.strategy == "rank" else _by_line(image, attention)


def _by_line(image: Image, attention: Tensor) -> Tensor:
    """Falls from one row to the next: by the mean of the line, in it by attention."""
    where = torch.stack((image.layout.view, image.layout.row), dim=1)
    _, line, sizes = where.unique(dim=0, return_inverse=True, return_counts=True)
    means = torch.zeros(len(sizes), device=attention.device).index_add_(0, line, attention) / sizes
    place = means.sort(descending=True, stable=True).indices.argsort()
    order = attention.sort(descending=True, stable=True).indices
    order = order[place[line][order].sort(stable=True).indices]
    return -order.argsort().float()
