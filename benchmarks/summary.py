"""From samples to the rows of the tables. Every ratio pairs a turn with `off`'s turn on the same prompts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thriftree.benchmarks import stats
from thriftree.benchmarks.measure import Sample

ALL = "geometric mean"


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one category, or over all of them.

    `wall` and `decode` are speeds in times of `off`: (off's seconds per token) / (its seconds per token). For a
    category low and high are the 10th and 90th percentile over its prompts; over all, a 95 % bootstrap interval.
    """

    dtype: str
    phase: str
    batch: int
    category: str
    method: str
    prompts: int
    per_step: float  # tokens per step of whole answers: the prefill is a step
    per_decode_step: float
    wall: float
    wall_low: float
    wall_high: float
    decode: float
    to_ngram: float  # wall, in times of vLLM's n-gram drafter
    cpu_per_step: float  # seconds
    cpu: float  # CPU seconds per token, in times of `off` (less is better)
    mismatches: int
    requests: int

    def as_dict(self) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def rows(samples: Iterable[Sample], seed: int) -> list[Row]:
    """Rows of every (dtype, phase, batch): categories in alphabetical order, then all of them."""
    by: dict[tuple[str, str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        by[sample.dtype, sample.phase, sample.batch].append(sample)
    made = []
    for (_, _, _), members in by.items():
        pairs = {(s.group, s.method): s for s in members}
        methods = list(dict.fromkeys(s.method for s in sorted(members, key=lambda s: s.group)))
        methods.sort(key=lambda m: m != "off")
        categories = sorted({s.category for s in members})
        for method in methods:
            mine = [s for s in members if s.method == method]
            if categories != ["mixed"]:
                for category in categories:
                    made.append(_row([s for s in mine if s.category == category], pairs, category, seed))
            made.append(_row(mine, pairs, ALL, seed))
    return made


def _row(mine: Sequence[Sample], pairs: dict[tuple[int, str], Sample], category: str, seed: int) -> Row:
    wall: dict[str, list[float]] = defaultdict(list)
    decode: dict[str, list[float]] = defaultdict(list)
    ngram: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    for sample in mine:
        off, stock = pairs[sample.group, "off"], pairs.get((sample.group, "ngram"))
        wall[sample.category].append(_ratio(_wall(off), _wall(sample)))
        decode[sample.category].append(_ratio(_decode(off), _decode(sample)))
        cpu[sample.category].append(_ratio(sample.cpu / max(sample.tokens, 1), off.cpu / max(off.tokens, 1)))
        if stock is not None:
            ngram[sample.category].append(_ratio(_wall(stock), _wall(sample)))
    every = stats.spread([value for values in wall.values() for value in values])
    low, high = stats.interval(wall, seed) if category == ALL else (every.low, every.high)
    if every.count < 2:
        low = high = math.nan
    requests = [request for sample in mine for request in sample.requests]
    spoken = [request for request in requests if request.steps > 1]
    first = mine[0]
    return Row(
        dtype=first.dtype,
        phase=first.phase,
        batch=first.batch,
        category=category,
        method=first.method,
        prompts=len(requests),
        per_step=_mean(mine, whole=True),
        per_decode_step=_mean(mine, whole=False) if spoken else math.nan,
        wall=stats.geometric_of_medians(wall),
        wall_low=low,
        wall_high=high,
        decode=stats.geometric_of_medians({k: [x for x in v if not math.isnan(x)] for k, v in decode.items()}),
        to_ngram=stats.geometric_of_medians(ngram),
        cpu_per_step=math.fsum(s.cpu for s in mine) / max(sum(s.steps for s in mine), 1),
        cpu=stats.geometric_of_medians(cpu),
        mismatches=sum(not request.same for request in requests),
        requests=len(requests),
    )


def _mean(samples: Sequence[Sample], whole: bool) -> float:
    """Tokens per step: all tokens over all steps in a category, the geometric mean over categories."""
    skip = 0 if whole else 1
    by: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for sample in samples:
        for request in sample.requests:
            if request.steps > skip:
                # the first output of an answer has one token: that of the prefill
                by[sample.category][0] += request.tokens - skip
                by[sample.category][1] += request.steps - skip
    return stats.geometric([tokens / steps for tokens, steps in by.values() if steps])


def _wall(sample: Sample) -> float:
    return sample.wall / sample.tokens if sample.tokens else math.nan


def _decode(sample: Sample) -> float:
    tokens = sum(request.tokens - 1 for request in sample.requests if request.tokens)
    return math.fsum(request.decode for request in sample.requests) / tokens if tokens else math.nan


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def gains(made: Iterable[Row], dtype: str, phase: str = "cold") -> dict[str, dict[int, float]]:
    """method -> batch -> wall gain over all prompts."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in made:
        if row.category == ALL and row.dtype == dtype and row.phase == phase and row.method != "off":
            found[row.method][row.batch] = row.wall
    return dict(found)


def crossings(made: Sequence[Row]) -> list[str]:
    """A sentence per dtype and method on where its gain is gone."""
    said = []
    for dtype in dict.fromkeys(row.dtype for row in made):
        for method, by_batch in gains(made, dtype).items():
            if len(by_batch) < 2 or method in ("off_again", "tree_off"):
                continue
            at = stats.crossing(by_batch)
            where = (
                f"falls to 1.0 at about batch {at:.1f}" if at is not None else f"stays above 1.0 up to {max(by_batch)}"
            )
            said.append(f"{dtype} {method}: the gain {where}")
    return said
