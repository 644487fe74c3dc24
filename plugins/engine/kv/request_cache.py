"""Everything that a worker keeps of one compressed request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from thriftree.plugins.engine.kv.cached import CachedRows
from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.ragged import RaggedRows
from thriftree.plugins.engine.kv.read import Reading, ReadRows
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rope

#: Block ids of the request in a KV cache group, from its first token on.
Blocks = Callable[[int], Tensor]
_UNSEEN = 64  # queries that wait, at most, until a method that adds up has seen them


class RequestCache:
    """All groups of layers of one request."""

    def __init__(self, plan: Plan, groups: Sequence[GroupLayers], rope: Rope | None, seed: int) -> None:
        layers = sum(len(group.names) for group in groups)
        self.plan = plan
        self.groups: list[CachedRows | RaggedRows | ReadRows] = []
        self._reading: Reading | None = None
        for group in groups:
            if isinstance(plan.method, ReadMethod):
                self.groups.append(ReadRows(plan, group, rope, seed, layers))
                continue
            whole = group.retrieval if plan.method.retrieval else ((),) * len(group.names)
            if plan.per_head or any(whole):
                self.groups.append(RaggedRows(plan, group, whole, rope, seed, layers))
            else:
                self.groups.append(CachedRows(plan, group, rope, seed, layers))
        if isinstance(plan.method, ReadMethod):
            self._reading = Reading(plan.method, plan.prompt, self.groups)
        self._place = {name: (g, i) for g, group in enumerate(groups) for i, name in enumerate(group.names)}
        self._window = _UNSEEN if plan.method.observes else plan.method.window
        self._layers = layers
        self.ring: QueryRing | None = None
        self.dropped = 0

    @property
    def starts(self) -> list[int]:
        """Where the window begins in each group, in tokens."""
        return [rows.start for rows in self.groups]

    def ragged(self, group: int) -> bool:
        """Whether heads differ in length in this group of layers, by now."""
        rows = self.groups[group]
        return not isinstance(rows, CachedRows) and rows.ragged

    def queries_wanted(self, chunk: int) -> int:
        """Of a step with `chunk` rows before its drafts: how many of the newest ones' queries to keep."""
        if self.plan.method.observes:
            return chunk if chunk == 1 else 0  # longer chunks are weighed as they pass
        return min(chunk, self._window)

    def observe(self, blocks: Blocks, computed: int, layer: str, queries: Tensor) -> None:
        """Weigh a chunk's queries ``[T, heads, D]`` of the positions from `computed` on, in one layer."""
        g, number = self._place[layer]
        rows = self.groups[g]
        length = computed + queries.shape[0]
        rows.grow(length)
        shaped = queries.unflatten(1, (rows.group.heads, -1)).permute(1, 2, 0, 3)
        rows.observe(number, blocks(g), length, shaped, computed)

    def see(self, queries: Tensor, position: int, blocks: Blocks) -> None:
        """Keep query rows ``[layers, n, heads, D]`` of the positions from `position` on."""
        if self.ring is None:
            self.ring = QueryRing(self._layers, self._window, *queries.shape[2:], queries.dtype)
        ring = self.ring
        if self.plan.method.observes and ring.unseen + queries.shape[1] > ring.window:
            self._weigh(position, blocks)
        ring.append(queries, position)

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

    def levels(self, length: int) -> int:
        """Draft levels that a request of `length` tokens, the last not cached yet, may accept before its next event.

        An event in the middle of a run would come later than without drafts, and might keep other rows.
        """
        if self._reading is not None:
            return self._reading.levels(length)
        computed = length - 1
        due = [at for rows in self.groups if (at := rows.window.next_event(computed)) is not None]
        return min(due) - length if due else length

    def compact(self, length: int, blocks: Blocks) -> None:
        """After a step that left `length` committed tokens in the cache."""
        if self._reading is not None:
            if self.ring is not None:
                self._reading.after(length, blocks, self.ring)
            return
        due = [rows.window.start(length) > rows.start for rows in self.groups]
        if not any(due):
            return
        if self.plan.method.observes:
            self._weigh(length, blocks)
        for g, rows in enumerate(self.groups):
            if due[g]:
                self.dropped += rows.compact(blocks(g), length, self.ring)
