"""`dpp`: rows that span the largest volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from thriftree.kernels.vision_select import greedy_dpp
from thriftree.plugins.vision.base import LAYER, Method
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower


@dataclass(frozen=True)
class DPP(Method):
    """Keep rows of which each adds most to the volume that they span.

    Greedy choice under a determinantal point process: unlike `divprune`, a row is measured against all those kept
    together. With ``relevance: attention`` a row weighs as much as the CLS token attends to it (least 0, most 1).

    Paper: CDPruner, arXiv 2506.10967, without its text encoder, which these models do not have: nothing asks what the
    question is about.
    """

    paper: ClassVar[str] = "2506.10967"
    relevance: Literal["none", "attention"] = field(
        default="none", metadata={"description": "what rows weigh: all the same, or the attention of the CLS token"}
    )
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "cls"),) if self.relevance == "attention" else ()

    def select(self, image: Image) -> Selection:
        quality = None if self.relevance == "none" else scaled(image.read("cls"))
        return Selection(greedy_dpp(image.unit, quality, image.keep).sort().values)


def scaled(values: Tensor) -> Tensor:
    """Float32 from 0 (the least) to 1 (the most); all 1 where they are the same."""
    low, high = values.float().aminmax()
    return (values.float() - low) / (high - low) if bool(high > low) else values.float().new_ones(values.shape)
