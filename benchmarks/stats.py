"""Medians, spreads and the batch where a gain is gone."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the 10-90 percentile range around it."""

    median: float
    low: float
    high: float
    count: int


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    known = [v for v in values if not math.isnan(v)]
    return Spread(percentile(known, 0.5), percentile(known, 0.1), percentile(known, 0.9), len(known))


def geometric(values: Sequence[float]) -> float:
    """Geometric mean of the positive values; NaN of nothing."""
    known = [v for v in values if v > 0]  # NaN is not
    return math.exp(math.fsum(map(math.log, known)) / len(known)) if known else math.nan


def geometric_of_medians(by: Mapping[str, Sequence[float]]) -> float:
    """The headline: every category weighs the same."""
    return geometric([percentile(values, 0.5) for values in by.values() if values])


def interval(by: Mapping[str, Sequence[float]], seed: int, rounds: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of `geometric_of_medians`: prompts are drawn again within each category.

    With one prompt in every category there is nothing to draw from there, so categories are drawn instead; a single
    value has no interval (NaN).
    """
    draw = random.Random(seed)
    members = [list(values) for values in by.values() if values]
    if sum(map(len, members)) < 2:
        return math.nan, math.nan
    single = all(len(values) == 1 for values in members)
    means = []
    for _ in range(rounds):
        if single:
            chosen = [draw.choice(members) for _ in members]
        else:
            chosen = [draw.choices(values, k=len(values)) for values in members]
        means.append(geometric([percentile(values, 0.5) for values in chosen]))
    return percentile(means, 0.025), percentile(means, 0.975)


def crossing(gains: Mapping[int, float], level: float = 1.0) -> float | None:
    """The batch at which the gain first falls to `level`, on a line through log2(batch); None: it stays above.

    The smallest measured batch where it is at or under `level` from the start.
    """
    points = sorted((batch, gain) for batch, gain in gains.items() if not math.isnan(gain))
    last: tuple[int, float] | None = None
    for batch, gain in points:
        if gain <= level:
            if last is None or last[1] == gain:
                return float(batch)
            share = (last[1] - level) / (last[1] - gain)
            return float(2 ** (math.log2(last[0]) + share * (math.log2(batch) - math.log2(last[0]))))
        last = (batch, gain)
    return None
