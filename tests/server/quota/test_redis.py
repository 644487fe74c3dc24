"""Quotas shared by replicas, on a real Redis server."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.server.quota import redis_server
from tests.server.quota.redis_server import RedisServer
from thriftree.server.principal import Quota
from thriftree.server.quota.gcra import SECOND
from thriftree.server.quota.limiter import Bucket, Grant, Plan, Refusal, Slots, StoreUnavailable, plan_of
from thriftree.server.quota.memory import MemoryLimiter
from thriftree.server.quota.redis import RedisLimiter

pytestmark = pytest.mark.skipif(redis_server.BINARY is None, reason=redis_server.WHY)

Replica = Callable[..., Awaitable[RedisLimiter]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@pytest.fixture
async def replica(server: RedisServer) -> AsyncIterator[Replica]:
    made: list[RedisLimiter] = []

    async def make(**kwargs: Any) -> RedisLimiter:
        made.append(RedisLimiter(server.url, **{"timeout": 5, **kwargs}))
        await made[-1].start()
        return made[-1]

    yield make
    for one in made:
        await one.stop()


def plan(key: Quota, tenant: Quota | None = None, key_id: str = "a") -> Plan:
    found = plan_of("acme", key_id, key, tenant or Quota())
    assert found is not None
    return found


async def settled(limiter: RedisLimiter) -> None:
    while limiter._tasks:
        await asyncio.sleep(0.01)


async def keys(limiter: RedisLimiter) -> set[str]:
    return {key.decode() for key in await limiter._redis.keys("*")}


async def test_two_replicas_share_one_limit(replica: Replica) -> None:
    limits = plan(Quota(requests_per_minute=20), Quota(tokens_per_minute=1_000_000))
    one, two = await replica(), await replica()
    outcomes = await asyncio.gather(*((one, two)[i % 2].admit(limits, 10) for i in range(60)))
    granted = [outcome for outcome in outcomes if isinstance(outcome, Grant)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert 20 <= len(granted) <= 22 and not any(grant.local for grant in granted)  # one more after three seconds
    for refusal in refused:
        assert isinstance(refusal.over, Bucket) and refusal.over.kind == "requests" and 0 < refusal.wait <= 3 * SECOND


async def test_the_wait_is_exact(replica: Replica) -> None:
    limits, limiter = plan(Quota(requests_per_minute=300)), await replica()
    outcome: Grant | Refusal = await limiter.admit(limits, 0)
    while isinstance(outcome, Grant):
        outcome = await limiter.admit(limits, 0)
    await asyncio.sleep(outcome.wait / SECOND)
    assert isinstance(await limiter.admit(limits, 0), Grant)


async def test_all_or_none(replica: Replica) -> None:
    limiter = await replica()
    limits = plan(Quota(requests_per_minute=100, tokens_per_minute=100), Quota(tokens_per_minute=1000, concurrent=1))
    first = await limiter.admit(limits, 90)
    assert isinstance(first, Grant)
    for tokens, kind in ((50, Bucket), (1, Slots)):  # too many tokens; no slot
        refusal = await limiter.admit(limits, tokens)
        assert isinstance(refusal, Refusal) and isinstance(refusal.over, kind)
        left = [b.rate.remaining(level) for b, level in zip(limits.buckets, refusal.levels, strict=True)]
        assert left[0] == 99 and 10 <= left[1] <= 14 and 910 <= left[2] <= 950


async def test_settlement_and_debt(replica: Replica) -> None:
    limiter, limits = await replica(), plan(Quota(requests_per_minute=60, tokens_per_minute=600))
    for taken, actual, counts in ((100, 40, True), (100, 400, False)):
        grant = await limiter.admit(limits, taken)
        assert isinstance(grant, Grant)
        limiter.finish(grant, actual, counts)
        await settled(limiter)
    after = await limiter.admit(limits, 0)
    assert isinstance(after, Grant)
    left = [b.rate.remaining(level) for b, level in zip(limits.buckets, after.levels, strict=True)]
    assert 58 <= left[0] <= 59 and 160 <= left[1] <= 180
    limiter.finish(after, 1360)
    await settled(limiter)
    refusal = await limiter.admit(limits, 1)
    assert isinstance(refusal, Refusal) and 117 * SECOND < refusal.wait <= 120.1 * SECOND


async def test_every_key_is_prefixed_and_expires(replica: Replica) -> None:
    limiter = await replica(prefix="mine:", lease_seconds=1.0)
    grant = await limiter.admit(plan(Quota(600, 600, 5), Quota(600, 600, 5)), 5)
    assert isinstance(grant, Grant)
    names = await keys(limiter)
    assert len(names) == 6 and all(name.startswith("mine:") and "{acme}" in name for name in names)
    limiter._leases.clear()  # as if the replica had died
    await asyncio.sleep(1.2)
    assert await keys(limiter) == set()


async def test_slots_of_a_replica_that_died_come_back_those_of_a_live_one_stay(replica: Replica) -> None:
    limits = plan(Quota(concurrent=2))
    dying, living = await replica(lease_seconds=1.2), await replica(lease_seconds=1.2)
    assert isinstance(await dying.admit(limits, 0), Grant)
    kept = await living.admit(limits, 0)
    assert isinstance(kept, Grant)
    await asyncio.sleep(1.5)  # both renew
    assert isinstance(await living.admit(limits, 0), Refusal)
    assert dying._beat is not None
    dying._beat.cancel()
    await asyncio.sleep(1.5)
    assert isinstance(await living.admit(limits, 0), Grant)
    assert isinstance(await living.admit(limits, 0), Refusal)
    living.finish(kept, 0)
    await settled(living)
    assert isinstance(await living.admit(limits, 0), Grant)


async def test_a_renewal_that_comes_late_does_not_bring_a_slot_back(replica: Replica) -> None:
    limits, limiter = plan(Quota(concurrent=1)), await replica()
    grant = await limiter.admit(limits, 0)
    assert isinstance(grant, Grant)
    limiter.finish(grant, 0)
    await settled(limiter)
    assert await limiter._ask(limiter._refresh, limiter._keys(limits), [1_000_000, grant.lease]) == 0
    assert await keys(limiter) == set()


async def test_a_request_cancelled_while_it_asks_leaves_no_slot_behind(replica: Replica) -> None:
    limits, limiter = plan(Quota(concurrent=1)), await replica(timeout=1.0)
    for delay in (0.0, 0.0002, 0.0005, 0.001, 0.002):
        asking = asyncio.create_task(limiter.admit(limits, 0))
        await asyncio.sleep(delay)
        asking.cancel()
        [outcome] = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(outcome, Grant):
            limiter.finish(outcome, 0)
        await settled(limiter)
        assert await keys(limiter) == set()


async def test_a_request_that_redis_grants_after_it_was_cancelled_leaves_no_slot_behind(
    server: RedisServer, replica: Replica
) -> None:
    limits, limiter = plan(Quota(concurrent=1)), await replica(timeout=1.0)
    first = await limiter.admit(limits, 0)  # Redis knows the script from here on
    assert isinstance(first, Grant)
    limiter.finish(first, 0)
    await settled(limiter)
    server.process.send_signal(signal.SIGSTOP)
    asking = asyncio.create_task(limiter.admit(limits, 0))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    server.process.send_signal(signal.SIGCONT)
    await asyncio.sleep(0.05)
    assert await keys(limiter) == {"thriftree:key:concurrent:a:{acme}"}
    await settled(limiter)
    assert await keys(limiter) == set()


async def test_redis_that_is_killed_and_comes_back(
    server: RedisServer, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[int] = []
    limits = plan(Quota(requests_per_minute=30, concurrent=10))
    limiter = await replica(failed=lambda: failures.append(1))
    before = await limiter.admit(limits, 0)
    server.kill()
    begun = time.monotonic()
    outcomes = [await limiter.admit(limits, 0) for _ in range(12)]
    assert time.monotonic() - begun < 1.1 and len(failures) == 1  # one asked, twelve did not wait
    grants = [outcome for outcome in outcomes if isinstance(outcome, Grant)]
    assert len(grants) == 10 and all(grant.local for grant in grants)  # counted here meanwhile
    assert caplog.text.count("does not answer") == 1
    for grant in (before, *grants):
        assert isinstance(grant, Grant)
        limiter.finish(grant, 0)
    await settled(limiter)
    server.start()
    await asyncio.sleep(1.1)
    after = await limiter.admit(limits, 0)
    assert isinstance(after, Grant) and not after.local
    assert "shared again" in caplog.text and not limiter._local._running


async def test_refusing_without_redis(server: RedisServer, replica: Replica) -> None:
    limiter = await replica(down="refuse")
    server.kill()
    with pytest.raises(StoreUnavailable):
        await limiter.admit(plan(Quota(requests_per_minute=30)), 0)


async def test_a_redis_that_hangs_costs_one_short_wait(server: RedisServer, replica: Replica) -> None:
    limiter = await replica(timeout=0.5)
    server.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    outcomes = [await limiter.admit(plan(Quota(requests_per_minute=30)), 0) for _ in range(5)]
    took = time.monotonic() - begun
    server.process.send_signal(signal.SIGCONT)
    assert 0.45 < took < 2.3 and all(isinstance(one, Grant) and one.local for one in outcomes)


async def test_scripts_survive_a_flushed_cache(replica: Replica) -> None:
    limits, limiter = plan(Quota(requests_per_minute=30)), await replica()
    await limiter.admit(limits, 0)
    await limiter._redis.script_flush()
    outcome = await limiter.admit(limits, 0)
    assert isinstance(outcome, Grant) and not outcome.local


async def test_it_grants_as_the_store_in_memory_does(replica: Replica) -> None:
    """The same requests at the same times, but for what the two calls take."""
    limits = plan(Quota(requests_per_minute=7, tokens_per_minute=100), Quota(tokens_per_minute=90, concurrent=4))
    shared, alone = await replica(), MemoryLimiter()
    drawn = Random(7)
    held: list[tuple[Grant, Grant]] = []
    for _ in range(200):
        if held and drawn.random() < 0.5:
            pair = held.pop(drawn.randrange(len(held)))
            actual, counts = drawn.randrange(0, 30), drawn.random() < 0.2
            shared.finish(pair[0], actual, counts)
            alone.finish(pair[1], actual, counts)
            await settled(shared)
            continue
        tokens = drawn.randrange(0, 40)
        one, other = await shared.admit(limits, tokens), await alone.admit(limits, tokens)
        assert type(one) is type(other)
        assert all(abs(a - b) < SECOND / 2 for a, b in zip(one.levels, other.levels, strict=True))
        if isinstance(one, Grant) and isinstance(other, Grant):
            held.append((one, other))
        elif isinstance(one, Refusal) and isinstance(other, Refusal):
            assert one.over == other.over and abs(one.wait - other.wait) < SECOND / 2
