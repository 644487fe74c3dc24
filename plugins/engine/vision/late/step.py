"""One step in the late layers: which of its rows go on, and where their keys and values go. NumPy only.

The late layers' part of a request's blocks is filled from the front without holes, so there the request is shorter than
in the early layers, by the rows that are gone, and all else about it is what vLLM does with any request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.engine.vision.late.fate import Fate
from thriftree.plugins.vision.late_rows import Gone

_ALL = Gone()


@dataclass(frozen=True)
class Part:
    """A request's share of the step: `scheduled` rows behind `computed` ones."""

    fate: Fate | None
    computed: int
    scheduled: int


@dataclass(frozen=True)
class Waiting:
    """A prompt whose rows the attention of this step picks: all of it, from row `first` of the step on."""

    fate: Fate
    first: int
    scheduled: int
    at: slice  # of `LateRows.rows`


@dataclass
class LateRows:
    """Requests (``[R]``) with rows in the late layers, and these rows (``[M]``)."""

    requests: NDArray[np.int64]  # [R] places in the batch
    counts: NDArray[np.int64]  # [R] rows of each
    lengths: NDArray[np.int64]  # [R] keys of each in the late layers, this step's included
    rows: NDArray[np.int64]  # [M] rows of the step (of `waiting`: still unknown)
    waiting: list[Waiting] = field(default_factory=list)
    idle: bool = False  # nothing goes on; the one row that is here leaves no key, and nobody reads it

    def slots(self, table: NDArray[np.int32], block: int) -> NDArray[np.int64]:
        """``[M]`` cache slots. `table`: ``[batch, blocks]`` of blocks with `block` slots each."""
        if self.idle:
            return np.array([-1])
        owners = np.repeat(self.requests, self.counts)
        ends = np.cumsum(self.counts)
        at = np.arange(int(ends[-1])) + np.repeat(self.lengths - ends, self.counts)
        return table[owners, at // block].astype(np.int64) * block + at % block

    def settle(self, one: Waiting) -> None:
        """Fill in the rows of a prompt whose fate is decided now."""
        assert one.fate.gone is not None
        self.rows[one.at] = one.fate.gone.stay(0, one.scheduled) + one.first


def plan(parts: Sequence[Part]) -> LateRows | None:
    """The step, by request in batch order; None: in the late layers it is what it is in the early ones."""
    requests, counts, lengths, rows = list[int](), list[int](), list[int](), list[NDArray[np.int64]]()
    waiting, first, size, same = [], 0, 0, True
    for index, part in enumerate(parts):
        end = part.computed + part.scheduled
        if part.fate is not None and part.fate.decide(part.computed, part.scheduled):
            assert part.fate.stays is not None
            count = part.scheduled - len(part.fate.visual) + part.fate.stays
            waiting.append(Waiting(part.fate, first, part.scheduled, slice(size, size + count)))
            mine, length = np.zeros(count, dtype=np.int64), count
        else:
            gone = _ALL if part.fate is None or part.fate.gone is None else part.fate.gone
            mine, length = gone.stay(part.computed, end) - part.computed + first, gone.length(end)
        same = same and length == end
        if len(mine):
            requests.append(index)
            counts.append(len(mine))
            lengths.append(length)
            rows.append(mine)
        first, size = first + part.scheduled, size + len(mine)
    if same:
        return None
    if not size:
        return _idle(parts[0])
    return LateRows(np.array(requests), np.array(counts), np.array(lengths), np.concatenate(rows), waiting)


def _idle(part: Part) -> LateRows:
    """A layer cannot run on no rows."""
    gone = _ALL if part.fate is None or part.fate.gone is None else part.fate.gone
    one, length = np.array([1]), gone.length(part.computed) + 1
    return LateRows(np.array([0]), one, np.array([length]), np.array([0]), idle=True)
