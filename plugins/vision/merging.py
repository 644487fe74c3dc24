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
    likeness = unit(left.float(), dim=-1) @ unit(right.float(), dim=-1).T
    return likeness.mul_(_STEPS).round_().div_(_STEPS)


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

    def means(self, values: Tensor, weights: Tensor | None = None, of: Tensor | None = None) -> Tensor:
        """``[m, C]`` float32: the mean over each group of ``values [N, C]``, by ``weights [N]`` if given.

        A group without weight gets its plain mean. `of`: only these of `rows`; what it costs goes by their groups.
        """
        rows = self.rows if of is None else of
        place = torch.full_like(self.owner, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        place = torch.where(self.owner < 0, -1, place[self.owner.clamp(min=0)])
        members = (place >= 0).nonzero().flatten()
        place, empty = place[members], torch.zeros(len(rows), 1, device=values.device)
        one = torch.ones(len(members), 1, device=values.device) if weights is None else weights[members, None].float()
        whole = empty.index_add(0, place, one)[place]
        one = torch.where(whole > 0, one / whole, 1.0)
        sums = values.new_zeros(len(rows), values.shape[1], dtype=torch.float32)
        return sums.index_add_(0, place, values[members].float() * one) / empty.index_add(0, place, one)

    def merge(self, sources: Tensor, targets: Tensor) -> Groups:
        """The rows `sources` (standing ones) and all that they stand for go to `targets` (standing, no source)."""
        to = torch.arange(len(self.owner), device=self.owner.device)
        to[sources] = targets
        return Groups(torch.where(self.owner < 0, -1, to[self.owner.clamp(min=0)]))

    def selection(self, image: Image, weights: Tensor | None = None) -> Selection:
        """Each group's mean at the place of the row that stands; a row alone as it is, bit by bit."""
        rows, several = self.rows, self.sizes > 1
        merged = image.features[rows]
        merged[several] = self.means(image.features, weights, rows[several]).to(merged.dtype)
        return Selection(rows, merged)


class Rounds:
    """Groups that grow, and their means. After a merge only means of groups that grew are worked out anew."""

    def __init__(self, image: Image, metric: Tensor) -> None:
        """`metric`: ``[N, C]``, what rows are compared by."""
        self.groups, self._metric = Groups.of(image), metric
        self.means = metric.float()  # [m, C] of the rows that stand: ``groups.means(metric)``, bit by bit

    def match(self, likeness: Tensor, sources: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Merge `count` of the `sources` into the target that each is most similar to, the most similar ones first.

        Args:
            likeness: ``[sources, targets]``.
            sources, targets: disjoint places in ``groups.rows``.

        Returns:
            Places before the merge of the rows that still stand, and places after it of those whose groups grew.
        """
        best = likeness.argmax(dim=1)
        first = likeness.gather(1, best[:, None]).flatten().sort(descending=True, stable=True).indices[:count]
        gone, into = sources[first], targets[best[first]]
        rows = self.groups.rows
        self.groups = self.groups.merge(rows[gone], rows[into])
        stands = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        stands[gone] = False
        grown = (stands.cumsum(0) - 1)[into.unique()]
        left = stands.nonzero().flatten()
        self.means = self.means[left]
        self.means[grown] = self.groups.means(self._metric, of=rows[left[grown]])
        return left, grown


def schedule(rows: int, keep: int, share: float) -> list[int]:
    """How many rows each round merges, `share` (at most half) of those that are left, until `keep` are left."""
    steps = []
    while rows > keep:
        steps.append(min(rows - keep, max(1, int(rows * share))))
        rows -= steps[-1]
    return steps


def halve(image: Image, metric: Tensor, share: float) -> Groups:
    """Rounds of bipartite matching by ``metric [N, C]``: each round, every second row may go into one between."""
    rounds = Rounds(image, metric)
    for count in schedule(len(metric), image.keep, share):
        here = rounds.means
        places = torch.arange(len(here), device=metric.device)
        rounds.match(cosine(here[::2], here[1::2]), places[::2], places[1::2], count)
    return rounds.groups
