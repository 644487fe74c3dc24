from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.admission.drain_rate import DrainRate


def steady(rate: DrainRate, per_second: float, seconds: float, begin: float) -> float:
    """Departures at a steady pace; returns the time at the end."""
    rate.start(begin)
    number = int(per_second * seconds)
    for index in range(1, number + 1):
        rate.left(begin + index / per_second)
    return begin + number / per_second


@given(st.floats(0.5, 1000), st.floats(4, 60), st.floats(0, 1e6))
def test_a_steady_rate_is_found(per_second: float, memory: float, begin: float) -> None:
    rate = DrainRate(memory)
    end = steady(rate, per_second, max(3 / per_second, 4), begin)
    assert rate.per_second(end) == pytest.approx(per_second, rel=0.6 / (per_second * memory) + 0.02)


def test_unknown_before_anything_left() -> None:
    rate = DrainRate()
    rate.start(0)
    assert rate.per_second(5) is None and rate.wait(3, 5) is None and rate.retry_after(3, 5) == 5


def test_idle_time_does_not_count() -> None:
    rate = DrainRate(10)
    end = steady(rate, 20, 20, 0)
    rate.stop(end)
    rate.left(end + 500)  # free places: says nothing about capacity
    assert rate.per_second(end + 1000) == pytest.approx(20, rel=0.01)
    steady(rate, 20, 5, end + 1000)
    assert rate.per_second(end + 1005) == pytest.approx(20, rel=0.01)


def test_it_follows_a_change_and_falls_when_nothing_leaves() -> None:
    rate = DrainRate(10)
    end = steady(rate, 100, 30, 0)
    end = steady(rate, 5, 50, end)
    assert rate.per_second(end) == pytest.approx(5, rel=0.2)
    stuck = rate.per_second(end + 30)
    assert stuck is not None and stuck < 1


def test_retry_after_is_what_is_ahead_by_the_rate() -> None:
    rate = DrainRate(10)
    end = steady(rate, 4, 40, 0)
    assert rate.wait(100, end) == pytest.approx(25, rel=0.02)
    assert rate.retry_after(90, end) == pytest.approx(23, abs=1)
    assert rate.retry_after(1, end) == 1
    assert rate.retry_after(10**6, end) == 120
