"""`stride`: evenly spaced rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image, Selection


@dataclass(frozen=True)
class Stride(Method):
    """Keep evenly spaced rows, line after line.

    A control, no paper.
    """

    def select(self, image: Image) -> Selection:
        return Selection(spaced(image.features.shape[0], image.keep).to(image.features.device))


def spaced(total: int, count: int) -> Tensor:
    """``[count]`` int64 of 0..total - 1: the middles of `count` equal stretches, ascending, none twice."""
    return (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))
