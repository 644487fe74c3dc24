"""Weighted fair queueing between tenants; inside a tenant by priority, then by arrival. No IO; time is virtual.

Start-time fair queueing: a tenant's head carries a virtual start, the tenant with the smallest one is served, and its
next head starts where this one finishes: ``start + cost / weight``. A tenant that comes anew starts at the virtual
time, which is the start of what was served last, so nobody who waits is ahead of it. (Ordering by finish would make a
newcomer's long request wait for as many tokens of a flood as it costs itself.) Over any stretch in which two tenants
both wait, what they get per unit of weight differs by at most one largest request of each. Nobody starves: there are
finitely many tenants, and each may be served before a waiting one only until its own start has passed the other's.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True, eq=False)
class Entry:
    """One waiting request. `weight` > 0; `cost` in tokens, at least 1; a lower `priority` is served earlier."""

    tenant: str
    weight: float
    priority: int
    cost: int
    waiting: bool = True


class QueueFull(Exception):
    """No room for the newcomer, and nobody holds more than a fair share instead."""


@dataclass(slots=True)
class _Tenant:
    """What one tenant has waiting. Priority levels in order; in each, entries in order of arrival."""

    name: str
    weight: float
    start: float
    turn: int  # breaks ties of `start`: who came first
    levels: list[int] = field(default_factory=list)
    by_level: dict[int, OrderedDict[Entry, None]] = field(default_factory=dict)
    requests: int = 0
    tokens: int = 0

    @property
    def key(self) -> tuple[float, int]:
        return self.start, self.turn

    def add(self, entry: Entry) -> None:
        level = self.by_level.get(entry.priority)
        if level is None:
            level = self.by_level[entry.priority] = OrderedDict()
            insort(self.levels, entry.priority)
        level[entry] = None
        self.requests += 1
        self.tokens += entry.cost

    def drop(self, entry: Entry) -> None:
        level = self.by_level[entry.priority]
        del level[entry]
        if not level:
            del self.by_level[entry.priority]
            del self.levels[bisect_left(self.levels, entry.priority)]
        self.requests -= 1
        self.tokens -= entry.cost

    def first(self) -> Entry:
        return next(iter(self.by_level[self.levels[0]]))

    def newest(self) -> Iterator[Entry]:
        """All entries, those first that would be served last."""
        for level in reversed(self.levels):
            yield from reversed(self.by_level[level])


class FairQueue:
    """Bounded in requests and in tokens; a single request above the token bound may wait alone.

    `push`, `pop` and `remove` take O(log n) comparisons. Holds nothing of anybody once it is empty.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.requests = self.tokens = 0
        self._tenants: dict[str, _Tenant] = {}
        self._order: list[tuple[float, int, _Tenant]] = []  # of every tenant that waits, by `key`
        self._finished: dict[str, float] = {}  # of tenants that do not wait, where it is still ahead of `_now`
        self._prune_at = 16
        self._now = 0.0
        self._weight = 0.0  # of all tenants that wait
        self._turns = count()

    def __len__(self) -> int:
        return self.requests

    def holds(self, tenant: str) -> int:
        """How many requests of that tenant wait."""
        found = self._tenants.get(tenant)
        return found.requests if found is not None else 0

    def push(self, tenant: str, weight: float, priority: int, cost: int) -> tuple[Entry, list[Entry]]:
        """The newcomer's entry, and those that had to make room for it (already taken out).

        Raises:
            QueueFull: nothing has changed.
        """
        entry = Entry(tenant, weight, priority, max(1, cost))
        displaced = self._room(entry)
        for one in displaced:
            self.remove(one)
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = self._arrive(tenant, weight)
        held.add(entry)
        self.requests += 1
        self.tokens += entry.cost
        return entry, displaced

    def pop(self) -> Entry | None:
        """The next request to serve; None: nobody waits."""
        if not self._order:
            return None
        held = self._order.pop(0)[2]
        entry = held.first()
        self._now = held.start
        held.start += entry.cost / entry.weight
        self._take(held, entry)
        if held.requests:
            insort(self._order, (held.start, held.turn, held))
        else:
            self._leave(held)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Give up a place; False: it does not wait any more."""
        if not entry.waiting:
            return False
        held = self._tenants[entry.tenant]
        self._take(held, entry)
        if not held.requests:
            del self._order[bisect_left(self._order, held.key)]
            self._leave(held)
        return True

    def full_for(self, tenant: str, weight: float) -> bool:
        """Whether even the smallest request of that tenant is refused now. Cheap: for before its cost is known."""
        if self.requests < self.max_requests and self.tokens < self.max_tokens:
            return False
        return not (self.max_requests and self._within_share(Entry(tenant, weight, 0, 1)))

    def _arrive(self, tenant: str, weight: float) -> _Tenant:
        start = max(self._now, self._finished.pop(tenant, 0.0))
        held = _Tenant(tenant, weight, start, next(self._turns))
        insort(self._order, (held.start, held.turn, held))
        self._weight += weight
        return held

    def _take(self, held: _Tenant, entry: Entry) -> None:
        entry.waiting = False
        held.drop(entry)
        self.requests -= 1
        self.tokens -= entry.cost

    def _leave(self, held: _Tenant) -> None:
        """A tenant has nothing waiting: keep only what it is ahead of the others, and nothing when all are gone."""
        del self._tenants[held.name]
        self._weight -= held.weight
        if not self._tenants:
            self._finished.clear()
            self._now = self._weight = 0.0
            return
        if held.start > self._now:
            self._finished[held.name] = held.start
        if len(self._finished) > self._prune_at:
            self._finished = {name: at for name, at in self._finished.items() if at > self._now}
            self._prune_at = 2 * len(self._finished) + 16

    def _room(self, entry: Entry) -> list[Entry]:
        """Who must go for `entry`: the newest of those that hold the most beyond their share. Raises QueueFull."""
        requests = self.requests + 1 - self.max_requests
        tokens = self.tokens + entry.cost - self.max_tokens
        if not self.max_requests:
            raise QueueFull
        if (requests <= 0 and tokens <= 0) or not self.requests:
            return []
        if not self._within_share(entry):
            raise QueueFull
        victims: list[Entry] = []
        total = self._weights(entry)
        for held in sorted(self._tenants.values(), key=self._held, reverse=True):
            left, kept_tokens = held.requests, held.tokens
            for one in held.newest() if held.name != entry.tenant else ():
                if self._share(left, kept_tokens) <= held.weight / total:
                    break
                victims.append(one)
                left, kept_tokens = left - 1, kept_tokens - one.cost
                requests, tokens = requests - 1, tokens - one.cost
                if requests <= 0 and tokens <= 0:
                    return victims
        raise QueueFull

    def _within_share(self, entry: Entry) -> bool:
        held = self._tenants.get(entry.tenant)
        requests, tokens = (held.requests, held.tokens) if held is not None else (0, 0)
        return self._share(requests + 1, tokens + entry.cost) <= entry.weight / self._weights(entry)

    def _weights(self, entry: Entry) -> float:
        """Of all that wait, the newcomer included."""
        return self._weight + (0 if entry.tenant in self._tenants else entry.weight)

    def _held(self, held: _Tenant) -> float:
        return self._share(held.requests, held.tokens) / held.weight

    def _share(self, requests: int, tokens: int) -> float:
        """Of the queue, by whichever bound is nearer."""
        return max(requests / self.max_requests, tokens / self.max_tokens)
