"""From turns to the table of costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from thriftree.benchmarks import stats
from thriftree.benchmarks.kv.served import Spent

BASE, WHOLE = "stock", "stock, whole context"
COLUMNS = (
    "row", "prompt", "step ms", "10-90 %", "x stock", "rounds", "mean x stock", "event ms", "% of decode", "first x",
    "side %",
)  # fmt: skip
NOTES = (
    "step: median time between two tokens over all rounds, and its 10-90 % range. x stock: that of a round over the "
    "same round's of `stock`, which holds as many rows without compression; median of the rounds, lowest and highest. "
    "mean x stock: the same of the mean step, events included. event: one compression event of one request; all of "
    "them, and the weighing of queries between them, as a share of the decode time. first: time to the first token "
    "over that of `stock, whole context` (the same prompt, uncompressed). side: bytes kept beside a request's rows as "
    "a share of its blocks' bytes, after an event."
)


@dataclass
class Sample:
    """One row's turn in one round."""

    row: str
    batch: int
    round: int
    prompt: int
    first: float  # seconds to the last request's first token
    gaps: list[float]  # seconds between its tokens
    foreign: float
    decode: float  # seconds from its first token to its last
    spent: Spent | None
    fresh: bool  # the prompt was not in the prefix cache


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    row: str
    prompt: int
    step: stats.Spread  # seconds
    ratio: tuple[float, float, float]  # of medians to stock's: median, lowest and highest round
    mean: float  # of means to stock's
    event: float | None  # seconds
    share: float | None  # of the decode time
    first: float | None
    side: float | None

    def cells(self) -> list[str]:
        def shown(value: float | None, form: str, factor: float = 1.0) -> str:
            return "" if value is None else format(value * factor, form)

        step, (middle, low, high) = self.step, self.ratio
        return [
            self.row, str(self.prompt), f"{step.median * 1e3:.1f}", f"{step.low * 1e3:.1f}-{step.high * 1e3:.1f}",
            f"{middle:.3f}", f"{low:.3f}-{high:.3f}", f"{self.mean:.3f}", shown(self.event, ".1f", 1e3),
            shown(self.share, ".1f", 100), shown(self.first, ".2f"), shown(self.side, ".1f", 100),
        ]  # fmt: skip


def lines(samples: Sequence[Sample]) -> Iterator[Line]:
    """In the order of the samples."""
    rounds = {(sample.row, sample.round): sample for sample in samples}
    for row in dict.fromkeys(sample.row for sample in samples):
        mine = [sample for sample in samples if sample.row == row]
        pairs = [(sample, rounds[BASE, sample.round]) for sample in mine]
        ratios = [median(a.gaps) / median(b.gaps) for a, b in pairs]
        wholes = [(a, rounds.get((WHOLE, a.round))) for a in mine if a.row != BASE]
        firsts = [
            a.first / b.first for a, b in wholes if b is not None and a.prompt == b.prompt and a.fresh and b.fresh
        ]
        yield Line(
            row,
            mine[0].prompt,
            stats.spread([gap for sample in mine for gap in sample.gaps]),
            (median(ratios), min(ratios), max(ratios)),
            median([fmean(a.gaps) / fmean(b.gaps) for a, b in pairs]),
            *_events(mine),
            median(firsts) if firsts else None,
            max((sample.spent.side_share for sample in mine if sample.spent), default=0.0) or None,
        )


def _events(mine: Sequence[Sample]) -> tuple[float | None, float | None]:
    """Seconds of an event that came while decoding; share of the decode time that these and the weighing took."""

    def total(name: str) -> float:
        return sum(sample.spent.seconds.get(name, 0.0) for sample in mine if sample.spent)

    count = sum(sample.spent.calls.get("event", 0) for sample in mine if sample.spent)
    if not count:
        return None, None
    return total("event") / count, (total("event") + total("weigh")) / sum(sample.decode for sample in mine)


def data(found: Sequence[Line]) -> list[dict[str, Any]]:
    """For JSON."""
    return [dict(zip(COLUMNS, line.cells(), strict=True)) for line in found]
