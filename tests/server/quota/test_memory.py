"""Several buckets as one: all or none; slots; bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.principal import Quota
from thriftree.server.quota.gcra import MINUTE, SECOND
from thriftree.server.quota.limiter import Bucket, Grant, Plan, Refusal, plan_of
from thriftree.server.quota.memory import MemoryLimiter


class Clock:
    now = 10**15

    def __call__(self) -> int:
        return self.now


def plan(key: Quota, tenant: Quota | None = None, key_id: str = "a") -> Plan:
    found = plan_of("acme", key_id, key, tenant or Quota())
    assert found is not None
    return found


async def take(limiter: MemoryLimiter, limits: Plan, tokens: int = 0) -> Grant:
    grant = await limiter.admit(limits, tokens)
    assert isinstance(grant, Grant), grant
    return grant


def test_no_limits_no_plan() -> None:
    assert plan_of("acme", "a", Quota(), Quota()) is None


def test_names_of_holders_never_meet() -> None:
    quota = Quota(requests_per_minute=1, tokens_per_minute=1, concurrent=1)
    plans = [plan_of(t, k, quota, quota) for t, k in (("a", "b"), ("b", "a"), ("a", "a"), ("a", None))]
    keys = [limit.name for p in plans if p for limit in (*p.buckets, *p.slots) if limit.holder == "key"]
    tenants = {limit.name for p in plans if p for limit in (*p.buckets, *p.slots) if limit.holder == "tenant"}
    assert len(keys) == len(set(keys)) == 12 and len(tenants) == 6 and not tenants & set(keys)


async def test_the_tenants_limit_stops_a_key_and_takes_nothing_from_it() -> None:
    limiter = MemoryLimiter(Clock())
    one = plan(Quota(requests_per_minute=10, tokens_per_minute=100), Quota(requests_per_minute=3))
    two = plan(Quota(requests_per_minute=10), Quota(requests_per_minute=3), "b")
    for limits in (one, two, one):
        await take(limiter, limits, 10)
    refusal = await limiter.admit(two, 10)
    assert isinstance(refusal, Refusal) and isinstance(refusal.over, Bucket)
    assert (refusal.over.holder, refusal.over.kind, refusal.wait) == ("tenant", "requests", 20 * SECOND)
    assert [b.rate.remaining(level) for b, level in zip(two.buckets, refusal.levels, strict=True)] == [9, 0]


@given(st.lists(st.tuples(st.integers(0, 30 * SECOND), st.integers(0, 120)), max_size=30))
async def test_all_or_none(requests: list[tuple[int, int]]) -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    limits = plan(Quota(requests_per_minute=6, tokens_per_minute=200), Quota(tokens_per_minute=100, concurrent=3))
    for pause, tokens in requests:
        clock.now += pause
        before = dict(limiter._tats), dict(limiter._running)
        outcome = await limiter.admit(limits, tokens)
        if isinstance(outcome, Refusal):
            assert (limiter._tats, limiter._running) == before
        else:
            after = [limiter._tats[bucket.name] - clock.now for bucket in limits.buckets]
            earlier = [max(0, before[0].get(bucket.name, 0) - clock.now) for bucket in limits.buckets]
            costs = [b.rate.time_of(c) for b, c in zip(limits.buckets, limits.costs(tokens), strict=True)]
            assert after == [a + b for a, b in zip(earlier, costs, strict=True)]


async def test_slots_are_counted_and_come_back() -> None:
    limiter = MemoryLimiter(Clock())
    limits = plan(Quota(concurrent=2), Quota(concurrent=5))
    first, _ = await take(limiter, limits), await take(limiter, limits)
    refusal = await limiter.admit(limits, 0)
    assert isinstance(refusal, Refusal) and refusal.over is limits.slots[0] and refusal.wait == 0
    limiter.finish(first, 0)
    await take(limiter, limits)


async def test_settlement_reaches_every_bucket_and_gives_a_request_back() -> None:
    limiter = MemoryLimiter(Clock())
    limits = plan(Quota(requests_per_minute=10, tokens_per_minute=100), Quota(tokens_per_minute=1000))
    limiter.finish(await take(limiter, limits, 60), 20, counts=False)
    grant = await take(limiter, limits, 0)
    assert [b.rate.remaining(level) for b, level in zip(limits.buckets, grant.levels, strict=True)] == [9, 80, 980]


async def test_full_buckets_are_forgotten() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    for i in range(20_000):
        clock.now += SECOND // 10
        limits = plan(Quota(requests_per_minute=60, concurrent=1), key_id=str(i))
        limiter.finish(await take(limiter, limits), 0)
        assert limiter.entries <= 1025
    clock.now += MINUTE


async def test_levels_travel() -> None:
    clock = Clock()
    limiter, other = MemoryLimiter(clock), MemoryLimiter()
    limiter.changed = set()
    limits = plan(Quota(requests_per_minute=10))
    await take(limiter, limits)
    changes = limiter.drain_changes()
    assert changes == [("key:requests:a:{acme}", 6 * SECOND)] and limiter.drain_changes() == []
    other.restore(changes)
    grant = await take(other, limits)
    assert limits.buckets[0].rate.remaining(grant.levels[0]) == 8
