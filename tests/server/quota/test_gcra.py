"""The rate limit as arithmetic: what it promises, for any order of costs and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.quota.gcra import MINUTE, SECOND, Rate

LIMITS = st.integers(1, 10_000_000)
EVENTS = st.lists(st.tuples(st.integers(0, 20 * SECOND), st.floats(0, 1)), min_size=1, max_size=60)


@given(LIMITS, EVENTS)
def test_no_window_sees_more_than_the_burst_and_the_rate(limit: int, events: list[tuple[int, float]]) -> None:
    rate, now, tat = Rate(limit), 0, 0
    granted: list[tuple[int, int]] = []
    for pause, share in events:
        now += pause
        cost = max(1, int(share * limit))
        tat, wait = rate.take(tat, now, cost)
        if not wait:
            granted.append((now, cost))
    for i, (begin, _) in enumerate(granted):
        total = 0
        for end, cost in granted[i:]:
            total += cost
            assert total * MINUTE <= limit * (MINUTE + end - begin)


@given(LIMITS, st.data())
def test_the_wait_is_exact(limit: int, data: st.DataObject) -> None:
    rate, now = Rate(limit), data.draw(st.integers(0, 10**18))
    tat = now + data.draw(st.integers(0, 3 * MINUTE))  # debts too
    cost = data.draw(st.integers(1, limit))
    same, wait = rate.take(tat, now, cost)
    if wait:
        assert same == tat
        assert rate.take(tat, now + wait - 1, cost)[1] == 1
    assert rate.take(tat, now + wait, cost)[1] == 0


@given(LIMITS, st.integers(1, 10_000_000))
def test_rounding_grants_nothing(limit: int, cost: int) -> None:
    time = Rate(limit).time_of(cost)
    assert (time - 1) * limit < cost * MINUTE <= time * limit


@given(LIMITS, st.integers(0, 2 * MINUTE))
def test_what_is_said_to_remain_can_be_taken_and_no_more(limit: int, level: int) -> None:
    rate = Rate(limit)
    left = rate.remaining(level)
    assert left == 0 or rate.take(level, 0, left)[1] == 0
    assert rate.take(level, 0, left + 1)[1] > 0


def test_a_whole_minutes_worth_at_once_then_the_rate() -> None:
    rate, tat = Rate(60), 0
    for _ in range(60):
        tat, wait = rate.take(tat, 0, 1)
        assert wait == 0
    assert rate.take(tat, 0, 1) == (tat, SECOND)
    assert rate.remaining(tat) == 0 and rate.remaining(tat - 5 * SECOND) == 5


@given(LIMITS, st.data())
def test_settling_is_as_if_the_true_cost_had_been_taken(limit: int, data: st.DataObject) -> None:
    """As long as the bucket has not run full in between, with any other takes in between."""
    rate, cost = Rate(limit), st.integers(0, limit)
    taken, actual = data.draw(cost), data.draw(st.integers(0, 3 * limit))
    mark, _ = rate.take(0, 0, taken)
    now = data.draw(st.integers(0, max(0, mark - 1)))
    others = data.draw(st.lists(cost, max_size=4))
    tat, expected = mark, rate.take(0, 0, 0)[0] + rate.time_of(actual)
    for other in others:
        tat += rate.time_of(other)
        expected += rate.time_of(other)
    assert rate.settle(tat, now, mark, taken, actual) == max(expected, tat - (mark - now))


@given(
    LIMITS, st.lists(st.tuples(st.integers(0, 30 * SECOND), st.floats(0, 1), st.floats(0, 1)), max_size=40), st.data()
)
def test_what_comes_back_never_fills_a_bucket_twice(
    limit: int, requests: list[tuple[int, float, float]], data: st.DataObject
) -> None:
    """True costs obey the limit in every window, however late the rest of a reservation is given back."""
    rate, now, tat = Rate(limit), 0, 0
    true: list[tuple[int, int]] = []
    open_requests: list[tuple[int, int, int]] = []
    for pause, share, used in requests:
        now += pause
        for request in list(open_requests):
            if data.draw(st.booleans()):
                open_requests.remove(request)
                tat = rate.settle(tat, now, *request)
        taken = max(1, int(share * limit))
        actual = int(used * taken)
        tat, wait = rate.take(tat, now, taken)
        if not wait:
            open_requests.append((tat, taken, actual))
            true.append((now, actual))
    for i, (begin, _) in enumerate(true):
        total = 0
        for end, cost in true[i:]:
            total += cost
            assert total * MINUTE <= limit * (MINUTE + end - begin)


def test_a_debt_is_waited_out() -> None:
    rate = Rate(600)  # ten a second
    mark, _ = rate.take(0, 0, 100)
    tat = rate.settle(mark, SECOND, mark, 100, 1600)
    assert tat == 160 * SECOND
    assert rate.remaining(tat - SECOND) == 0
    assert rate.take(tat, SECOND, 1)[1] == 99 * SECOND + SECOND // 10


def test_time_spent_generating_counts_towards_the_debt() -> None:
    """A long answer is charged as of its start: 1500 tokens over three minutes at 600 a minute owe nothing."""
    rate = Rate(600)
    mark, _ = rate.take(0, 0, 100)
    assert rate.remaining(rate.settle(mark, 180 * SECOND, mark, 100, 1500) - 180 * SECOND) == 600


@pytest.mark.parametrize("limit", [0, -1])
def test_a_rate_of_nothing_is_no_rate(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rate(limit)
