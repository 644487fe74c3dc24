"""Quotas of one process: a dictionary of arrival times. One event loop uses it, so an operation is atomic as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic_ns

from thriftree.server.quota.limiter import Grant, Plan, Refusal

_SWEEP_ABOVE = 1024  # entries


class MemoryLimiter:
    """A `Limiter`. Full buckets are forgotten, so memory is bounded by what was used in the last minute, or is owed."""

    def __init__(self, clock: Callable[[], int] = monotonic_ns) -> None:
        self._clock = clock
        self._tats: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._sweep_at = _SWEEP_ABOVE
        self.changed: set[str] | None = None  # names changed since `drain_changes`; None: nobody asks

    @property
    def entries(self) -> int:
        return len(self._tats) + len(self._running)

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to save."""

    def levels(self, plan: Plan) -> list[int]:
        now = self._clock()
        return [self._tats.get(bucket.name, now) - now for bucket in plan.buckets]

    async def admit(self, plan: Plan, tokens: int) -> Grant | Refusal:
        now, tats, running = self._clock(), self._tats, self._running
        marks: list[int] = []
        longest, over, full = 0, None, None
        for bucket in plan.buckets:
            mark, wait = bucket.rate.take(tats.get(bucket.name, now), now, tokens if bucket.tokens else 1)
            marks.append(mark)
            if wait > longest:
                longest, over = wait, bucket
        for slots in plan.slots:
            if running.get(slots.name, 0) >= slots.limit:
                full = full or slots
        if over is not None or full is not None:
            levels = [tats.get(bucket.name, now) - now for bucket in plan.buckets]
            return Refusal(over or full, longest, levels)  # type: ignore[arg-type]  # one of them is there
        for bucket, mark in zip(plan.buckets, marks, strict=True):
            self._put(bucket.name, mark)
        for slots in plan.slots:
            running[slots.name] = running.get(slots.name, 0) + 1
        if len(tats) > self._sweep_at:
            self._sweep(now)
        return Grant(plan, tokens, [mark - now for mark in marks], marks)

    def finish(self, grant: Grant, tokens: int, counts: bool = True) -> None:
        plan, now = grant.plan, self._clock()
        for bucket, mark in zip(plan.buckets, grant.marks, strict=True):
            taken, actual = (grant.tokens, tokens) if bucket.tokens else (1, int(counts))
            if taken != actual:
                tat = self._tats.get(bucket.name, mark)
                self._put(bucket.name, bucket.rate.settle(tat, now, mark, taken, actual))
        for slots in plan.slots:
            left = self._running[slots.name] - 1
            if left:
                self._running[slots.name] = left
            else:
                del self._running[slots.name]

    def _put(self, name: str, tat: int) -> None:
        self._tats[name] = tat
        if self.changed is not None:
            self.changed.add(name)

    def _sweep(self, now: int) -> None:
        """Forget full buckets; next time at twice what is left, so that a request pays a constant share."""
        self._tats = {name: tat for name, tat in self._tats.items() if tat > now}
        self._sweep_at = max(_SWEEP_ABOVE, 2 * len(self._tats))

    def drain_changes(self) -> list[tuple[str, int]]:
        """Name and level (nanoseconds that its TAT lies ahead) of every bucket that changed since the last call."""
        now, changed, self.changed = self._clock(), self.changed or (), set()
        return [(name, max(0, self._tats.get(name, now) - now)) for name in changed]

    def restore(self, levels: Iterable[tuple[str, int]]) -> None:
        now = self._clock()
        self._tats.update((name, now + level) for name, level in levels if level > 0)
