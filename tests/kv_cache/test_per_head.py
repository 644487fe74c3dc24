"""AdaKV's shares against all possible ones."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from thriftree.plugins.kv_cache.per_head import blocks_per_head

NOTHING = torch.zeros(3, 40, dtype=torch.bool)
any_score = st.one_of(st.integers(-3, 3).map(float), st.floats(-5, 5, width=32), st.sampled_from([math.inf, math.nan]))


def value(score: Tensor, blocks: tuple[int, ...], block: int) -> float:
    """Sum of the scores of the rows that fit."""
    ordered = score.sort(dim=1, descending=True).values
    return float(sum(ordered[head, : count * block].sum() for head, count in enumerate(blocks)))


@given(
    st.lists(st.lists(any_score, min_size=11, max_size=11), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 40),
    st.floats(0, 1),
    st.integers(0, 4),
)
def test_the_sum_and_the_floors(rows: list[list[float]], block: int, total: int, alpha: float, first: int) -> None:
    score = torch.tensor(rows)
    heads = len(rows)
    protected = torch.zeros(heads, 11, dtype=torch.bool)
    protected[:, :first] = True
    assume(total >= heads * -(-first // block))
    room_for_floor = heads * max(-(-first // block), min(int(alpha * total / heads), -(-11 // block))) <= total
    assume(room_for_floor)
    found = blocks_per_head(score, protected, total, block, alpha)
    assert found.sum() == total
    assert (found * block >= first).all()
    assert (found >= min(int(alpha * total / heads), -(-11 // block))).all()
    if total <= heads * -(-11 // block):
        assert (found <= -(-11 // block)).all()  # nobody gets what it cannot fill while others could


@given(st.lists(st.floats(-9, 9, width=32), min_size=24, max_size=24), st.integers(0, 6), st.sampled_from([0.0, 0.5]))
def test_no_other_sharing_out_is_worth_more(flat: list[float], total: int, alpha: float) -> None:
    score = torch.tensor(flat).view(3, 8)
    floor = min(int(alpha * total / 3), 2)
    found = blocks_per_head(score, NOTHING[:, :8], total, 4, alpha)
    possible = [b for b in product(range(3), repeat=3) if sum(b) == total and min(b) >= floor]
    best = max(value(score, b, 4) for b in possible)
    assert value(score, tuple(found.tolist()), 4) == pytest.approx(best, abs=1e-4)


def test_a_head_with_better_rows_gets_more() -> None:
    score = torch.zeros(3, 40)
    score[1, :30] = 1.0
    assert blocks_per_head(score, NOTHING, 6, 8, alpha=0.0).tolist() == [1, 4, 1]
    assert blocks_per_head(score, NOTHING, 4, 8, alpha=0.0).tolist() == [0, 4, 0]
    assert blocks_per_head(score, NOTHING, 6, 8, alpha=0.5).tolist() == [1, 4, 1]
    assert blocks_per_head(score, NOTHING, 9, 8, alpha=0.7).tolist() == [3, 4, 2]


def test_protected_rows_take_their_place_first() -> None:
    """A head whose good rows fit beside the protected ones wants no second block for them; full of those, it does."""
    score, protected = torch.zeros(2, 16), torch.zeros(2, 16, dtype=torch.bool)
    score[0, :4], score[1, :4] = 1.0, 0.5
    protected[1, 8:16] = True
    assert blocks_per_head(score, protected, 3, 8, alpha=0.0).tolist() == [1, 2]
    protected[0, 8:16] = True
    score[1, :5] = 0.9
    assert blocks_per_head(score, protected, 3, 8, alpha=0.0).tolist() == [1, 2]


def test_equal_heads_get_equal_shares() -> None:
    for score in (
        torch.zeros(3, 40),
        torch.full((3, 40), -7.0),
        torch.full((3, 40), math.nan),
        torch.rand(40).expand(3, -1),
    ):
        assert blocks_per_head(score, NOTHING, 9, 8).tolist() == [3, 3, 3]
    assert blocks_per_head(torch.zeros(3, 40), NOTHING, 30, 8).tolist() == [10, 10, 10]  # more than the rows fill


def test_level_and_unit_of_the_scores_do_not_matter() -> None:
    score = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    found = blocks_per_head(score, NOTHING, 7, 8)
    assert blocks_per_head(score * 1000 - 500, NOTHING, 7, 8).equal(found)


def test_no_room_for_what_is_protected() -> None:
    with pytest.raises(ValueError, match=r"^budget: 5 blocks for 3 heads"):
        blocks_per_head(torch.zeros(3, 40), torch.ones(3, 40, dtype=torch.bool)[:, :40], 5, 32)
