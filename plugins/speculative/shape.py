"""Static tree shapes: which child rank hangs where. Built from measured rank acceptance, or the paper's
own."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from thriftree.plugins.speculative.tree import ROOT

#: How often the true next token was child r of the row for the last two tokens (else of the last one): the
#: default model on 34 chat, code and mathematics prompts. With rows of one token only, rank 0 has 0.38.
#: `thriftree tune tree` measures a deployment's own.
MEASURED_RANKS = (0.475, 0.072, 0.042, 0.024, 0.016, 0.014, 0.010, 0.008)

#: Token Recycling's tree "2.2.2": paths of child ranks, level by level (8/21/25/15/8/3 nodes).
PAPER_222 = (
    "0 1 2 3 4 5 6 7 "
    "00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70 "
    "000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500 "
    "0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000 "
    "00000 00001 00002 00010 00020 00100 01000 10000 "
    "000000 000001 000100"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Node ``i`` is child ``ranks[i]`` of node ``parents[i]``; ordered by falling path value, parents
    first."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    values: tuple[float, ...]
    depths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ranks)


def tuned_shape(rank_acceptance: Sequence[float], nodes: int, max_depth: int = 10) -> Shape:
    """The tree of `nodes` nodes with the largest expected accepted length, if a rank's acceptance knows no
    context.

    Greedy by path product is optimal here, since a child is never worth more than its parent.
    """
    if not all(0 <= p < 1 for p in rank_acceptance) or sum(rank_acceptance) > 1 + 1e-9:
        raise ValueError("rank_acceptance: need probabilities of distinct outcomes, each below 1, sum at most 1")
    parents: list[int] = []
    ranks: list[int] = []
    values: list[float] = []
    depths: list[int] = []
    heap = [(-p, ROOT, rank, 1) for rank, p in enumerate(rank_acceptance) if p > 0]
    heapq.heapify(heap)
    while heap and len(ranks) < nodes:
        negative, parent, rank, depth = heapq.heappop(heap)
        node = len(ranks)
        parents.append(parent)
        ranks.append(rank)
        values.append(-negative)
        depths.append(depth)
        if depth < max_depth:
            for r, p in enumerate(rank_acceptance):
                if p > 0:
                    heapq.heappush(heap, (negative * p, node, r, depth + 1))
    return Shape(tuple(parents), tuple(ranks), tuple(values), tuple(depths))


def shape_from_paths(paths: Sequence[str], rank_acceptance: Sequence[float] = MEASURED_RANKS) -> Shape:
    """A shape given as paths of single-digit ranks, reordered by falling path product (which keeps parents
    first)."""

    def value(path: str) -> float:
        product = 1.0
        for digit in path:
            product *= rank_acceptance[int(digit)]
        return product

    order = sorted(paths, key=lambda path: (-value(path), len(path), path))
    index = {"": ROOT} | {path: i for i, path in enumerate(order)}
    if len(index) != len(paths) + 1:
        raise ValueError("a path occurs twice")
    try:
        parents = tuple(index[path[:-1]] for path in order)
    except KeyError as missing:
        raise ValueError(f"path {missing} is missing: every prefix of a path must be in the shape") from None
    return Shape(
        parents,
        tuple(int(path[-1]) for path in order),
        tuple(value(path) for path in order),
        tuple(len(path) for path in order),
    )


@lru_cache
def named_shape(name: str) -> Shape:
    """``"tuned"`` (the shipped default, 64 nodes), ``"2.2.2"`` (the paper's 80), or paths of ranks ("0 1 00
    01")."""
    if name == "tuned":
        return tuned_shape(MEASURED_RANKS, 64)
    if name == "2.2.2":
        return shape_from_paths(PAPER_222.split())
    paths = name.split()
    if not paths or not all(path.isdigit() and max(path) < "8" for path in paths):
        raise ValueError(f"shape: expected 'tuned', '2.2.2' or paths of ranks 0-7 such as '0 1 00', got {name!r}")
    return shape_from_paths(paths)
