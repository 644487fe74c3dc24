"""How often a candidate with a given evidence is what the target says: shipped cells, then the tenant's own
counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import exp

# Suffix evidence of a candidate: 0 no suffix matches here, 1 one does but never with this candidate, else
# 2 + LENGTHS x SHARES cells for the request's own text, then as many for the tenant's earlier texts.
LENGTH_CLASS = (0, 0, 1, 2, 3, 4, 4, 5, 5, 5, 6)  # by matched tokens, the last for all longer ones
LENGTHS, SHARES = 7, 9
NO_SUFFIX, OTHER_SUFFIX, OWN_SUFFIX = 0, 1, 2
LIBRARY_SUFFIX = OWN_SUFFIX + LENGTHS * SHARES
SUFFIX_CLASSES = LIBRARY_SUFFIX + LENGTHS * SHARES
# Row evidence: 0 no row here, 1 the row lacks the candidate, else 2 + rank for rows of two tokens, then of
# one.
NO_ROW, OTHER_ROW, PAIR_ROW = 0, 1, 2
RANKS = 8
SINGLE_ROW = PAIR_ROW + RANKS
ROW_CLASSES = SINGLE_ROW + RANKS
CELLS = SUFFIX_CLASSES * ROW_CLASSES


def share_class(count: int, total: int, latest: bool) -> int:
    """Classes 0-2: the only continuation, seen once, twice, more often; 3-8: by share, odd if the most recent
    one."""
    if count == total:
        return min(count, 3) - 1
    share = count / total
    return (3 if share < 0.25 else 5 if share < 0.55 else 7) + latest


class Calibration:
    """`probability[cell]` is learned online; a cell starts at its shipped value, which counts as `strength`
    sightings."""

    __slots__ = ("_sightings", "_strength", "learned", "probability")

    def __init__(self, strength: float = 40.0, prior: Sequence[float] | None = None) -> None:
        self.probability = list(shipped() if prior is None else prior)
        self._strength = strength
        self._sightings: dict[int, float] = {}
        self.learned = 0

    def learn(self, cell: int, hit: bool) -> None:
        """Running mean with the prior's weight in it; the window of 2,000 sightings lets it follow a
        drift."""
        seen = self._sightings.get(cell, self._strength) + 1.0
        p = self.probability
        p[cell] += (hit - p[cell]) / seen
        self._sightings[cell] = min(seen, 2000.0)
        self.learned += 1

    def state_bytes(self) -> int:
        return 8 * len(self.probability) + 140 * len(self._sightings)  # unlearned cells are shared floats


@lru_cache(maxsize=1)
def shipped() -> tuple[float, ...]:
    """The cells measured on the default model."""
    from thriftree.plugins.speculative.cells import JOINT, ROWS, SUFFIXES

    return table(SUFFIXES, ROWS, JOINT)


def table(suffixes: Sequence[float], rows: Sequence[float], joint: Mapping[int, float]) -> tuple[float, ...]:
    """All cells: log-odds per suffix class and per row class add up, but cells that were seen often stand as
    seen."""
    cells = [1 / (1 + exp(-(s + r))) for s in suffixes for r in rows]
    for cell, probability in joint.items():
        cells[cell] = probability
    return tuple(cells)
