"""How long a step takes by the number of rows in it: measured, never assumed to be monotone or convex."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import exp, log

#: Relative cost before anything was measured: a step is bound by memory at first, then every row costs.
_UNMEASURED = {1: 1.0, 8: 1.1, 64: 3.0}
_EXACT_ROWS = 64
#: A knot that was measured this often tells about the machine, before that about itself.
_KNOWN = 4
_SURPRISE = 0.2
#: How much of an error is put down to the machine as a whole.
_LEVEL_SHARE = 2 / 3


def _knot(rows: int) -> int:
    """Row counts above 64 share a knot with their neighbours."""
    return rows if rows <= _EXACT_ROWS else -(-rows // 16) * 16


class StepCost:
    """``seconds(rows) = level * shape(rows)``: the level follows the machine quickly, each row count's shape
    slowly.

    Without the level, a machine that has become slower would make the row counts that were measured since
    look dearer than those that were not.
    """

    def __init__(self, rate: float = 0.15) -> None:
        self._rate = rate
        self._level: float | None = None
        self._shape = dict(_UNMEASURED)
        self._rows = sorted(self._shape)
        self._times_seen: dict[int, int] = {}
        self._last_seen: dict[int, int] = {}
        self._steps = 0

    def seed(self, seconds: Mapping[int, float]) -> None:
        """Take over a start-up probe: rows -> seconds (a median of a few steps each)."""
        measured = {_knot(rows): value for rows, value in seconds.items() if rows > 0 and value > 0}
        if len(measured) < 2:
            for rows, value in measured.items():
                self.measure(rows, value)
            return
        self._level = 1.0
        self._shape = measured
        self._rows = sorted(measured)
        self._times_seen = dict.fromkeys(measured, 2 * _KNOWN)
        self._last_seen = dict.fromkeys(measured, self._steps)

    def measure(self, rows: int, seconds: float) -> bool:
        """A step of `rows` rows took this long. True if that is far less than was believed."""
        if rows <= 0 or seconds <= 0:
            return False
        self._steps += 1
        knot = _knot(rows)
        shape = self._interpolate(knot)
        if self._level is None:
            self._level = seconds / shape
        seen = self._times_seen.get(knot, 0)
        error = log(seconds / (self._level * shape))
        cheap = error < -_SURPRISE
        if abs(error) < _SURPRISE:
            self._last_seen[knot] = self._steps  # else look again soon: a new truth, or a hiccup
        rate = max(self._rate, 1 / (seen + 1))
        if seen >= _KNOWN:
            rate = min(max(rate, abs(error) - _SURPRISE), 0.5)
            error = max(-0.5, min(0.5, error))  # a hiccup is not a trend
            self._level *= exp(_LEVEL_SHARE * rate * error)
            rate *= 1 - _LEVEL_SHARE
        if knot not in self._shape:
            self._rows.insert(bisect_left(self._rows, knot), knot)
        self._shape[knot] = shape * exp(rate * error)
        self._times_seen[knot] = seen + 1
        return cheap

    def seconds(self, rows: int) -> float:
        return (self._level or 1.0) * self._interpolate(rows)

    def age(self, rows: int) -> int:
        """Steps since this row count was measured (a large number if never)."""
        last = self._last_seen.get(_knot(rows))
        return self._steps - last if last is not None else 1 << 30

    def table(self) -> dict[int, float]:
        """What was measured, for a log or a gauge."""
        return {rows: self.seconds(rows) for rows in self._rows if rows in self._times_seen}

    def _interpolate(self, rows: int) -> float:
        """Straight lines between known row counts; beyond the last its slope, but never falling."""
        known, shape = self._rows, self._shape
        if rows in shape:
            return shape[rows]
        place = bisect_left(known, rows)
        if place == 0:
            return shape[known[0]]
        if place == len(known):
            low, high = known[-2], known[-1]
            slope = max(shape[high] - shape[low], 0.0) / (high - low)
            return shape[high] + slope * (rows - high)
        low, high = known[place - 1], known[place]
        return shape[low] + (shape[high] - shape[low]) * (rows - low) / (high - low)
