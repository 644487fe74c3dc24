"""Everything that a worker keeps of one request whose cache is not plain: what it drops, or what it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from thriftree.plugins.engine.kv.cached import CachedRows
from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.ragged import RaggedRows
from thriftree.plugins.engine.kv.ragged_step import HeadTables
from thriftree.plugins.engine.kv.read import Reading, ReadRows
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.engine.kv.step_rows import Observer
from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rope


class Described(Protocol):
    """A method, or its description."""

    @property
    def observes(self) -> bool: ...
    @property
    def window(self) -> int: ...


#: Block ids of the request in a KV cache group, from its first token on.
Blocks = Callable[[int], Tensor]
#: Queries that wait, at most, until a method that adds up has seen them. Each takes the room of `G / 2` cached rows.
_UNSEEN = 8


def kept_queries(method: Described) -> int:
    """Query rows that a request with this method keeps at most, of each layer."""
    return _UNSEEN if method.observes else method.window


class RequestCache(ABC):
    """All groups of layers of one request."""

    def __init__(self, plan: Plan, layers: int, window: int) -> None:
        self.plan = plan
        self.ring: QueryRing | None = None
        self._layers, self._window = layers, window

    @property
    @abstractmethod
    def starts(self) -> list[int]:
        """Where the window begins in each group, in tokens."""

    @abstractmethod
    def apart(self, group: int) -> HeadTables | None:
        """What the heads of a group of layers read in the next step, where that is not in the regular table."""

    @abstractmethod
    def levels(self, length: int) -> int:
        """Draft levels that a request of `length` tokens, the last not cached yet, may accept in the next step.

        An event in the middle of a run would come later than without drafts, and might keep other rows.
        """

    @abstractmethod
    def compact(self, length: int, blocks: Blocks) -> None:
        """After a step that left `length` committed tokens in the cache."""

    def queries_wanted(self, chunk: int, computed: int, drafts: int) -> int:
        """Of a step with `chunk` rows, from position `computed` on, and then `drafts`: how many of the newest rows'
        queries to keep."""
        return min(chunk, self._window)

    def observer(self, chunk: int, computed: int, blocks: Blocks) -> Observer | None:
        """Who weighs the queries of a chunk as they pass, of the positions from `computed` on."""
        return None

    def see(self, queries: Tensor, position: int, blocks: Blocks) -> None:
        """Keep query rows ``[layers, n, heads, D]`` of the positions from `position` on."""
        if self.ring is None:
            heads, dim = queries.shape[2:]
            self.ring = QueryRing(self._layers, self._window, heads, dim, queries.dtype)
        self.ring.append(queries, position)


class ReadingCache(RequestCache):
    """Nothing is dropped; steps read less."""

    def __init__(self, plan: Plan, groups: Sequence[ReadRows], layers: int) -> None:
        super().__init__(plan, layers, plan.method.window)
        assert isinstance(plan.method, ReadMethod)
        self.groups = groups
        self._reading = Reading(plan.method, plan.prompt, groups)

    @property
    def starts(self) -> list[int]:
        return [0] * len(self.groups)

    def apart(self, group: int) -> HeadTables | None:
        rows = self.groups[group]
        return rows if rows.ragged else None

    def levels(self, length: int) -> int:
        return self._reading.levels(length)

    def compact(self, length: int, blocks: Blocks) -> None:
        if self.ring is not None:
            self._reading.after(length, blocks, self.ring)


class DroppingCache(RequestCache):
    """Rows are dropped as the windows move on."""

    def __init__(self, plan: Plan, groups: Sequence[CachedRows | RaggedRows], layers: int) -> None:
        super().__init__(plan, layers, kept_queries(plan.method))
        self.groups = groups
        names = [rows.group.names for rows in groups]
        self._place = {name: (g, i) for g, mine in enumerate(names) for i, name in enumerate(mine)}

    @property
    def starts(self) -> list[int]:
        return [rows.start for rows in self.groups]

    def apart(self, group: int) -> HeadTables | None:
        rows = self.groups[group]
        return rows if isinstance(rows, RaggedRows) and rows.ragged else None

    def levels(self, length: int) -> int:
        due = self._due(length - 1)
        return length if due is None else due - length

    def _due(self, computed: int) -> int | None:
        """At which length the next event is, the earliest."""
        due = [at for rows in self.groups if (at := rows.window.next_event(computed)) is not None]
        return min(due, default=None)

    def queries_wanted(self, chunk: int, computed: int, drafts: int) -> int:
        if self.plan.method.observes:
            return chunk if chunk == 1 else 0  # longer chunks are weighed as they pass
        if self._idle(computed, computed + chunk + drafts):
            return 0
        return super().queries_wanted(chunk, computed, drafts)

    def _idle(self, computed: int, length: int) -> bool:
        """Whether no event will look at a query before position `length`."""
        due = self._due(computed)
        return due is None or length <= due - self._window

    def observer(self, chunk: int, computed: int, blocks: Blocks) -> Observer | None:
        if chunk == 1 or not self.plan.method.observes:
            return None
        self._weigh(computed, blocks)  # those that wait are the newest ones, and this chunk is not kept beside them
        return partial(self._observe, blocks, computed)

    def _observe(self, blocks: Blocks, computed: int, layer: str, queries: Tensor) -> None:
        g, number = self._place[layer]
        rows = self.groups[g]
        length = computed + queries.shape[0]
        rows.grow(length)
        shaped = queries.unflatten(1, (rows.group.heads, -1)).permute(1, 2, 0, 3)
        rows.observe(number, blocks(g), length, shaped, computed)

    def see(self, queries: Tensor, position: int, blocks: Blocks) -> None:
        if not self.plan.method.observes:
            return super().see(queries, position, blocks)
        for piece in queries.split(_UNSEEN, 1):
            if self.ring is not None and self.ring.unseen + piece.shape[1] > _UNSEEN:
                self._weigh(position, blocks)
            super().see(piece, position, blocks)
            position += piece.shape[1]

    def _weigh(self, length: int, blocks: Blocks) -> None:
        """The waiting queries, the newest of which is at ``length - 1``, against all rows."""
        ring = self.ring
        if ring is None or not ring.unseen:
            return
        for g, rows in enumerate(self.groups):
            rows.grow(length)
            for number, index in enumerate(rows.group.indices):
                queries = ring.newest(index, length, ring.unseen, rows.group.heads)
                rows.observe(number, blocks(g), length, queries, length - ring.unseen)
        ring.unseen = 0

    def compact(self, length: int, blocks: Blocks) -> None:
        self._compact(length, blocks)
        if not self.plan.method.observes and self._idle(length, length):
            self.ring = None

    def _compact(self, length: int, blocks: Blocks) -> None:
        due = [rows.window.start(length) > rows.start for rows in self.groups]
        if not any(due):
            return
        if self.plan.method.observes:
            self._weigh(length, blocks)
        for g, rows in enumerate(self.groups):
            if due[g]:
                rows.compact(blocks(g), length, self.ring)


def request_cache(plan: Plan, groups: Sequence[GroupLayers], rope: Rope | None, seed: int) -> RequestCache:
    """The cache of a new request."""
    layers = sum(len(group.names) for group in groups)
    if plan.method.reads:
        return ReadingCache(plan, [ReadRows(plan, group, rope, seed, layers) for group in groups], layers)
    dropping: list[CachedRows | RaggedRows] = []
    for group in groups:
        whole = group.retrieval if plan.method.retrieval else ((),) * len(group.names)
        if plan.per_head or any(whole):
            dropping.append(RaggedRows(plan, group, whole, rope, seed, layers))
        else:
            dropping.append(CachedRows(plan, group, rope, seed, layers))
    return DroppingCache(plan, dropping, layers)
