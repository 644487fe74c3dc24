"""Medians, means, intervals and the crossing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.benchmarks import stats

POSITIVE = st.floats(0.01, 100)


def test_percentile_is_linear_between_neighbours() -> None:
    assert stats.percentile([3, 1, 2], 0.5) == 2
    assert stats.percentile([0, 10], 0.1) == pytest.approx(1)
    assert stats.percentile([7], 0.9) == 7
    assert math.isnan(stats.percentile([], 0.5))


def test_spread_leaves_out_what_was_not_measured() -> None:
    assert stats.spread([1.0, math.nan, 3.0]) == stats.Spread(2.0, pytest.approx(1.2), pytest.approx(2.8), 2)


def test_geometric_mean() -> None:
    assert stats.geometric([0.5, 2.0]) == pytest.approx(1.0)
    assert stats.geometric([4.0, math.nan]) == pytest.approx(4.0)
    assert math.isnan(stats.geometric([]))


def test_every_category_weighs_the_same() -> None:
    assert stats.geometric_of_medians({"many": [4.0] * 9, "one": [1.0], "none": []}) == pytest.approx(2.0)


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(POSITIVE, min_size=1, max_size=5), min_size=1))
def test_interval_is_ordered_and_repeatable(by: dict[str, list[float]]) -> None:
    low, high = stats.interval(by, seed=3, rounds=50)
    if sum(map(len, by.values())) < 2:
        assert math.isnan(low) and math.isnan(high)
        return
    values = [value for members in by.values() for value in members]
    assert min(values) * 0.999 <= low <= high <= max(values) * 1.001
    assert (low, high) == stats.interval(by, seed=3, rounds=50)


def test_interval_of_single_prompts_draws_categories() -> None:
    low, high = stats.interval({"a": [1.0], "b": [2.0], "c": [4.0]}, seed=0)
    assert low < 2.0 < high
    assert all(map(math.isnan, stats.interval({}, seed=0)))


def test_crossing_lies_between_the_batches() -> None:
    assert stats.crossing({1: 1.5, 2: 1.5, 4: 0.5}) == pytest.approx(2**1.5)
    assert stats.crossing({1: 1.2, 8: 1.1}) is None
    assert stats.crossing({1: 0.9, 2: 1.4}) == 1.0
    assert stats.crossing({1: 1.2, 2: 1.0}) == 2.0
    assert stats.crossing({1: math.nan, 4: 1.2}) is None
    assert stats.crossing({}) is None
