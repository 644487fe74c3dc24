"""The gate in front of the engine: so many requests inside at once, the others in a fair queue. asyncio, no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from thriftree.server.admission.drain_rate import DrainRate
from thriftree.server.admission.fair_queue import Entry, FairQueue, QueueFull
from thriftree.server.errors import ApiError

_FULL = "the server is overloaded and its queue is full; try again later"
_DISPLACED = "the server is overloaded and others were waiting for their share; try again later"
_CLOSED = "the server is stopping"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue. `granted` is done when the request may enter, or with the ApiError that refuses it."""

    entry: Entry
    granted: asyncio.Future[None]


class Gate:
    """`try_enter` on the free path, `ask` or `wait` where that says no, `leave` after either."""

    def __init__(
        self,
        max_queue: int,
        max_queue_tokens: int,
        max_running: int | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`max_running` None: no limit (the engine's own is known only once it is loaded; set it then)."""
        self.running = 0
        self.queue = FairQueue(max_queue, max_queue_tokens)
        self.rate = DrainRate()
        self._limit = max_running
        self._clock = clock
        self._waiters: dict[Entry, asyncio.Future[None]] = {}
        self._closed: int | None = None  # Retry-After, once it is closed

    @property
    def max_running(self) -> int | None:
        """Requests inside at once. Raised, it lets those that wait in; lowered, it waits for some to leave."""
        return self._limit

    @max_running.setter
    def max_running(self, limit: int | None) -> None:
        self._limit = limit
        self._let_in()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self.queue.requests

    def try_enter(self) -> bool:
        """Take a place if one is free and nobody waits for it. Follow with `leave`.

        Raises:
            ApiError: 503, the gate is closed.
        """
        if self._closed is not None:
            raise self._stopping()
        if self._full():  # as it is while anybody waits
            return False
        self.running += 1
        if self.running == self._limit:
            self.rate.start(self._clock())
        return True

    def leave(self) -> None:
        """Give the place back, to whoever is next."""
        self.running -= 1
        if self._limit is not None and self.running + 1 >= self._limit:
            self.rate.left(self._clock())
            self._let_in()

    def check(self, tenant: str, weight: float) -> None:
        """Refuse at once where the cost does not matter. Raises the 429 of `ask`."""
        if self.queue.full_for(tenant, weight):
            raise self._overloaded(_FULL)

    def ask(self, tenant: str, weight: float, priority: int, cost: int) -> Place:
        """Queue up. Whoever asks takes the outcome from `Place.granted`, or says `give_up`.

        Raises:
            ApiError: 429 with Retry-After, the queue is full; 503, the gate is closed.
        """
        if self._closed is not None:
            raise self._stopping()
        try:
            entry, displaced = self.queue.push(tenant, weight, priority, cost)
        except QueueFull:
            raise self._overloaded(_FULL) from None
        for one in displaced:
            granted = self._waiters.pop(one)
            if not granted.done():
                granted.set_exception(self._overloaded(_DISPLACED))
        granted = self._waiters[entry] = asyncio.get_running_loop().create_future()
        self._let_in()
        return Place(entry, granted)

    def give_up(self, place: Place) -> None:
        """Nobody wants that place any more, whatever has become of it by now."""
        if self.queue.remove(place.entry):
            del self._waiters[place.entry]
        elif not place.granted.cancelled() and place.granted.exception() is None:
            self.leave()

    async def wait(self, tenant: str, weight: float, priority: int, cost: int) -> None:
        """Wait for a place; cancelled, give it up at once. Follow with `leave`.

        Raises:
            ApiError: as `ask`; also 429 when a lighter tenant took this request's place in the queue, and 503 when the
                gate closes meanwhile.
        """
        place = self.ask(tenant, weight, priority, cost)
        try:
            await place.granted
        except asyncio.CancelledError:
            self.give_up(place)
            raise

    @asynccontextmanager
    async def enter(self, tenant: str, weight: float, priority: int, cost: int) -> AsyncIterator[None]:
        """``async with gate.enter(...)``: inside, the request has its place. Raises what `wait` raises."""
        if not self.try_enter():
            await self.wait(tenant, weight, priority, cost)
        try:
            yield
        finally:
            self.leave()

    def retry_after(self) -> int:
        """Seconds until what waits now will have been served, at the measured rate."""
        return self.rate.retry_after(self.queue.requests + 1, self._clock())

    def close(self, retry_after: int = 5) -> None:
        """Refuse newcomers and what waits with 503; those inside stay."""
        self._closed = retry_after
        for entry, granted in self._waiters.items():
            self.queue.remove(entry)
            if not granted.done():
                granted.set_exception(self._stopping())
        self._waiters.clear()

    def _full(self) -> bool:
        return self._limit is not None and self.running >= self._limit

    def _let_in(self) -> None:
        while not self._full() and (entry := self.queue.pop()) is not None:
            granted = self._waiters.pop(entry)
            if not granted.done():  # cancelled: its waiter is about to hear of that
                self.running += 1
                granted.set_result(None)
        if self._full():
            self.rate.start(self._clock())
        else:
            self.rate.stop(self._clock())

    def _overloaded(self, why: str) -> ApiError:
        return ApiError(429, "overloaded", why, headers={"Retry-After": str(self.retry_after())}, kind="server_error")

    def _stopping(self) -> ApiError:
        return ApiError(503, "draining", _CLOSED, headers={"Retry-After": str(self._closed)})
