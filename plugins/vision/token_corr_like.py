"""`token_corr_like`: our reading of correlation-guided compression; the authors have published no code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.hashing import mix, uniform
from thriftree.plugins.vision.base import LAYER, Method, best
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower
from thriftree.plugins.vision.merging import Groups, cosine
from thriftree.plugins.vision.parts import parts, split


@dataclass(frozen=True)
class TokenCorrLike(Method):
    """Keep outliers of attention, draw the others tile by tile by how little the tile repeats itself.

    Rows whose CLS attention in a deep layer lies 1.5 quartile ranges above the third quartile stay. The rest of the
    budget is shared over thumbnail and tiles by how many different patches each has (keys of a low layer; patches
    alike above `alike` count as one), drawn with the attention as probability. What is not drawn is merged into the
    most similar row that was.

    Paper: Token-level Correlation-guided Compression, arXiv 2407.14439, for document models that cut pages into crops.
    **Our reading**: layers, threshold, the exact count and the merging by attention are ours. The draw depends on the
    image and the settings only.
    """

    paper: ClassVar[str] = "2407.14439"
    merges: ClassVar[bool] = True
    alike: float = field(
        default=0.8,
        metadata={"minimum": 0.0, "maximum": 1.0, "description": "cosine of keys above which patches count once"},
    )
    low_layer: int = field(default=2, metadata=LAYER)
    layer: int = field(default=-2, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return Tap(tower.layer(self.low_layer), "keys"), Tap(tower.layer(self.layer), "cls")

    def select(self, image: Image) -> Selection:
        attention, keys = image.read("cls").float(), image.read("keys")
        owner = Groups.of(image).owner
        first, third = attention.quantile(0.25), attention.quantile(0.75)
        outliers = torch.where(attention > third + 1.5 * (third - first), attention, -torch.inf)
        informative = best(outliers, min(image.keep, int(outliers.isfinite().sum())))
        free = torch.ones_like(owner, dtype=torch.bool)
        free[informative] = False
        drawn = self._drawn(image, attention, keys, free)
        free[drawn] = False
        if len(drawn):
            rest = owner[free]
            owner[rest] = drawn[cosine(keys[rest], keys[drawn]).argmax(dim=1)]
        else:
            owner[free] = -1
        return Groups(owner).selection(image, attention)

    def _drawn(self, image: Image, attention: Tensor, keys: Tensor, free: Tensor) -> Tensor:
        """``[k - informative]`` int64, ascending."""
        places = [part[free[part]] for part in parts(image.layout)]
        counts = split(
            image.keep - int((~free).sum()),
            [distinct(keys[part], self.alike) for part in places],
            [len(part) for part in places],
        )
        noise = uniform(mix(image.seed, torch.arange(len(free), device=free.device)))
        # The largest of log p + Gumbel noise are a draw without replacement.
        score = attention.clamp(min=1e-12).log() - (-noise.log()).log()
        picks = [part[best(score[part], count)] for part, count in zip(places, counts, strict=True)]
        return torch.cat(picks).sort().values


def distinct(keys: Tensor, alike: float) -> float:
    """How many different ones there are, where rows alike count as one together (1 for a flat tile)."""
    if not len(keys):
        return 0.0
    same = cosine(keys, keys) > alike
    return float((1 / same.sum(dim=1).clamp(min=1)).double().sum())
