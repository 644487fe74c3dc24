"""Rank acceptance by replay, and the shape as a request names it."""

from __future__ import annotations

import pytest

from thriftree.benchmarks.tune import Spoken, paths, rank_acceptance
from thriftree.plugins.speculative.shape import named_shape, tuned_shape


def test_a_repeated_answer_is_all_rank_zero() -> None:
    one = Spoken([1, 2], [3, 4, 5], [[3, 30], [4, 40], [5, 50]])
    ranks = rank_acceptance([one, one])
    assert (ranks.asked, ranks.positions) == (3, 6)
    assert ranks.acceptance == (1.0, *[0.0] * 7)


def test_the_rank_is_the_place_in_the_earlier_row() -> None:
    first = Spoken([1, 2], [3], [[3, 9]])
    second = Spoken([1, 2], [9], [[9, 3]])
    assert rank_acceptance([first, second]).acceptance[:2] == (0.0, 1.0)


def test_one_token_is_the_fallback() -> None:
    ranks = rank_acceptance([Spoken([1, 2], [3], [[3]]), Spoken([7, 2], [3], [[3]])])
    assert ranks.acceptance[0] == 1.0


def test_nothing_known() -> None:
    assert rank_acceptance([]).asked == 0


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_paths_come_back_as_the_same_tree(nodes: int) -> None:
    text = paths(tuned_shape((0.4, 0.2, 0.1), nodes))
    assert len(text.split()) == nodes
    assert set(paths(named_shape(text)).split()) == set(text.split())
