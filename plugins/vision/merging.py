"""Rows that were merged into others, and bipartite matching: what `aim`, `tome` and `pitome` share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thriftree.plugins.vision.image import Image, Selection

_STEPS = 2.0**20  # a cosine is rounded, so that equal rows tie whatever the order of the sums


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """``[A, B]`` float32 of ``[A, C]`` and ``[B, C]``; a row of zeros is like nothing (0)."""
    unit = torch.nn.functional.normalize
    return ((unit(left.float(), dim=-1) @ unit(right.float(), dim=-1).T) * _STEPS).round() / _STEPS


@dataclass(frozen=True)
class Groups:
    """An image's rows in groups; `owner` says which row each was merged into (itself: it stands, -1: it is dropped)."""

    owner: Tensor  # [N] int64

    @classmethod
    def of(cls, image: Image) -> Groups:
        """Every row on its own."""
        return cls(torch.arange(image.features.shape[0], device=image.features.device))

    @property
    def rows(self) -> Tensor:
        """``[m]`` int64, ascending: those that stand."""
        return (self.owner == torch.arange(len(self.owner), device=self.owner.device)).nonzero().flatten()

    @property
    def sizes(self) -> Tensor:
        """``[m]`` int64: how many rows each stands for; the sum is N less those dropped."""
        return torch.bincount(self.owner[self.owner >= 0], minlength=len(self.owner))[self.rows]

    def means(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[m, C]`` float32: the mean over each group of ``values [N, C]``, by ``weights [N]`` if given.

        A group without weight gets its plain mean.
        """
        one = torch.ones(len(self.owner), device=values.device) if weights is None else weights.float()
        whole = self._sums(one[:, None])[self.owner.clamp(min=0), 0]
        one = torch.where(whole > 0, one / whole, 1.0)[:, None]
        rows = self.rows
        return self._sums(values.float() * one)[rows] / self._sums(one)[rows]

    def _sums(self, values: Tensor) -> Tensor:
        stays = self.owner >= 0
        return torch.zeros_like(values).index_add_(0, self.owner[stays], values[stays])

    def merge(self, sources: Tensor, targets: Tensor) -> Groups:
        """The rows `sources` (standing ones) and all that they stand for go to `targets` (standing, no source)."""
        to = torch.arange(len(self.owner), device=self.owner.device)
        to[sources] = targets
        return Groups(torch.where(self.owner < 0, -1, to[self.owner.clamp(min=0)]))

    def selection(self, image: Image, weights: Tensor | None = None) -> Selection:
        """Each group's mean at the place of the row that stands; a row alone as it is, bit by bit."""
        alone = (self.sizes == 1)[:, None]
        merged = self.means(image.features, weights).to(image.features.dtype)
        return Selection(self.rows, torch.where(alone, image.features[self.rows], merged))


def match(groups: Groups, metric: Tensor, sources: Tensor, targets: Tensor, count: int) -> Groups:
    """Merge `count` of the `sources` into the target that each is most similar to, the most similar ones first.

    Args:
        metric: ``[m, C]`` of the standing rows, in their order.
        sources, targets: disjoint places in ``groups.rows``.
    """
    likeness = cosine(metric[sources], metric[targets])
    best = likeness.argmax(dim=1)
    first = likeness.gather(1, best[:, None]).flatten().sort(descending=True, stable=True).indices[:count]
    rows = groups.rows
    return groups.merge(rows[sources[first]], rows[targets[best[first]]])


def schedule(rows: int, keep: int, share: float) -> list[int]:
    """How many rows each round merges, `share` (at most half) of those that are left, until `keep` are left."""
    steps = []
    while rows > keep:
        steps.append(min(rows - keep, max(1, int(rows * share))))
        rows -= steps[-1]
    return steps


def halve(image: Image, metric: Tensor, share: float) -> Groups:
    """Rounds of bipartite matching by ``metric [N, C]``: each round, every second row may go into one between."""
    groups = Groups.of(image)
    for count in schedule(len(metric), image.keep, share):
        here = groups.means(metric)
        places = torch.arange(len(here), device=metric.device)
        groups = match(groups, here, places[::2], places[1::2], count)
    return groups
