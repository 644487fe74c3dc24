"""Quotas that several replicas share, in Redis (5 or later): one script per operation, one round trip per request.

While Redis cannot be reached, each replica counts on its own (`down="local"`: a key gets at most its limit per replica)
or refuses (`down="refuse"`). A request waits for Redis `timeout` at most, and after a failure none asks for a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Literal
from uuid import uuid4

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from thriftree.server.quota.limiter import Grant, Plan, Refusal, StoreUnavailable
from thriftree.server.quota.memory import MemoryLimiter
from thriftree.server.quota.scripts import ADMIT, FINISH, REFRESH

logger = logging.getLogger("thriftree.server")

LEASE_SECONDS = 30.0  # a replica that dies holds its requests' slots for so long
_PAUSE = 1.0  # seconds without asking, after a failure
_STOP_SECONDS = 1.0
_MICRO = 1000  # nanoseconds

_Failed = (RedisError, OSError, TimeoutError)


class RedisLimiter:
    """A `Limiter`. `failed` is called for every operation that Redis did not answer."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "thriftree:",
        timeout: float = 0.1,
        down: Literal["local", "refuse"] = "local",
        failed: Callable[[], None] = lambda: None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=64,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),  # an operation that was sent twice would count twice
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._admit, self._finish, self._refresh = map(self._redis.register_script, (ADMIT, FINISH, REFRESH))
        self._prefix, self._timeout, self._down, self._failed = prefix, timeout, down, failed
        self._life = round(lease_seconds * 1e6)
        self._local = MemoryLimiter()
        self._silent_until, self._reached = 0.0, True
        self._leases: dict[str, list[str]] = {}  # lease -> keys of its slots
        self._tasks: set[asyncio.Task[Any]] = set()
        self._beat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Does not need Redis: a replica starts without it as it goes on without it; the log says so."""
        await self._ask(self._refresh, [f"{self._prefix}start"], [0])
        self._beat = asyncio.create_task(self._keep_leases())

    async def stop(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
        with contextlib.suppress(*_Failed):
            await self._redis.aclose()

    def levels(self, plan: Plan) -> None:
        """They are with Redis."""

    async def admit(self, plan: Plan, tokens: int) -> Grant | Refusal:
        lease = uuid4().hex if plan.slots else ""
        costs = [_micros(b.rate.time_of(cost)) for b, cost in zip(plan.buckets, plan.costs(tokens), strict=True)]
        limits = [slots.limit for slots in plan.slots]
        arguments = [len(costs), lease, self._life, *costs, *limits]
        try:
            answer = await self._ask(self._admit, self._keys(plan), arguments)
        except asyncio.CancelledError:
            if lease:
                self._spawn(self._release(self._keys(plan, rates=False), lease))
            raise
        if answer is None:
            return await self._alone(plan, tokens)
        wait, over, now, *tats = answer
        levels = [(tat - now) * _MICRO for tat in tats]
        if over:
            return Refusal((*plan.buckets, *plan.slots)[over - 1], wait * _MICRO, levels)
        if lease:
            self._leases[lease] = self._keys(plan, rates=False)
        return Grant(plan, tokens, levels, tats, lease)

    def finish(self, grant: Grant, tokens: int, counts: bool = True) -> None:
        if grant.local:
            return self._local.finish(grant, tokens, counts)
        self._leases.pop(grant.lease, None)
        plan = grant.plan
        pairs = zip(plan.buckets, plan.costs(grant.tokens), plan.costs(tokens, int(counts)), strict=True)
        deltas = [_micros(b.rate.time_of(actual)) - _micros(b.rate.time_of(taken)) for b, taken, actual in pairs]
        if grant.lease or any(deltas):
            self._spawn(self._ask(self._finish, self._keys(plan), [len(deltas), grant.lease, *deltas, *grant.marks]))

    async def _ask(self, script: Any, keys: list[str], arguments: list[Any]) -> Any:
        """What the script answers; None: Redis did not, or was not asked."""
        if monotonic() < self._silent_until:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await script(keys=keys, args=arguments)
        except _Failed as error:
            self._silent_until = monotonic() + _PAUSE
            self._failed()
            self._tell(False, f": {type(error).__name__} {error}".rstrip())
            return None
        self._tell(True)
        return answer

    def _tell(self, reached: bool, why: str = "") -> None:
        """Log when Redis goes and when it comes back."""
        if reached != self._reached:
            self._reached = reached
            what = "shared again" if reached else "counted by each replica" if self._down == "local" else "refused"
            logger.warning("Redis %s; quotas are %s%s", "answers" if reached else "does not answer", what, why)

    async def _release(self, keys: list[str], lease: str) -> None:
        """Slots that a cancelled request may have got or may get yet: what it sent is with Redis, on its connection."""
        await asyncio.sleep(self._timeout)
        await self._ask(self._finish, keys, [0, lease])

    async def _alone(self, plan: Plan, tokens: int) -> Grant | Refusal:
        """Without Redis."""
        if self._down == "refuse":
            raise StoreUnavailable
        outcome = await self._local.admit(plan, tokens)
        if isinstance(outcome, Grant):
            outcome.local = True
        return outcome

    async def _keep_leases(self) -> None:
        """Renew the leases of requests that still run, three times in a life."""
        while True:
            await asyncio.sleep(self._life / 3e6)
            held: defaultdict[str, list[str]] = defaultdict(list)
            for lease, keys in self._leases.items():
                for key in keys:
                    held[key].append(lease)
            for key, leases in held.items():
                await self._ask(self._refresh, [key], [self._life, *leases])

    def _keys(self, plan: Plan, rates: bool = True) -> list[str]:
        names = [bucket.name for bucket in plan.buckets] if rates else []
        return [self._prefix + name for name in (*names, *(slots.name for slots in plan.slots))]

    def _spawn(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _micros(nanoseconds: int) -> int:
    return -(-nanoseconds // _MICRO)
