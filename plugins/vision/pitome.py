"""`pitome`: rows of large uniform regions merged, rows that stand alone left as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import elu

from thriftree.plugins.vision.base import LAYER, Method
from thriftree.plugins.vision.image import Image, Selection, Tap, Tower
from thriftree.plugins.vision.merging import Rounds, cosine, schedule


@dataclass(frozen=True)
class PiToMe(Method):
    """Merge rows that have many like them, and leave rows that stand alone.

    A row's energy is the mean over all rows of ELU(cosine of their keys - margin): high in a dense cluster. In a round
    the rows of most energy are taken alternately as sources and targets, and each source goes into its most similar
    target. The margin falls to 0 over the rounds.

    Paper: PiToMe, arXiv 2405.16148. It does this in every layer of the vision tower, with attention weighed by the
    sizes; here the rounds follow after the tower, on the keys of one layer. A round that merges one row has one
    target, alike or not: at very small counts clusters mix.
    """

    paper: ClassVar[str] = "2405.16148"
    merges: ClassVar[bool] = True
    margin: float = field(
        default=0.9, metadata={"minimum": 0.0, "maximum": 1.0, "description": "cosine above which rows are alike"}
    )
    per_round: float = field(
        default=0.1, metadata={"minimum": 0.01, "maximum": 0.5, "description": "share of the rows that a round merges"}
    )
    layer: int = field(default=-1, metadata=LAYER)

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return (Tap(tower.layer(self.layer), "keys"),)

    def select(self, image: Image) -> Selection:
        keys = image.read("keys")
        rounds, likeness = Rounds(image, keys), cosine(keys, keys)
        steps = schedule(len(keys), image.keep, self.per_round)
        for number, count in enumerate(steps):
            margin = self.margin * (1 - number / len(steps))
            dense = energy(likeness, margin).sort(descending=True, stable=True).indices
            sources, targets = dense[: 2 * count : 2], dense[1 : 2 * count : 2]
            left, grown = rounds.match(likeness[sources][:, targets], sources, targets, count)
            likeness = renewed(likeness[left][:, left], rounds.means, grown)
        return rounds.groups.selection(image)


def renewed(likeness: Tensor, means: Tensor, grown: Tensor) -> Tensor:
    """``[m, m]`` cosines of ``means [m, C]``, of which those of `grown` are not up to date."""
    fresh = cosine(means[grown], means)
    likeness[grown], likeness[:, grown] = fresh, fresh.T
    return likeness


def energy(likeness: Tensor, margin: float) -> Tensor:
    """``[m]`` from the cosines ``[m, m]``: how many rows are like it, and how much."""
    return elu(likeness - margin, inplace=True).mean(dim=1, dtype=torch.float64)
