"""What a store of quotas does: one atomic operation over all limits of a request, and its settlement afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol

from thriftree.server.principal import Quota
from thriftree.server.quota.gcra import MINUTE, Rate

Kind = Literal["requests", "tokens", "concurrent"]
Holder = Literal["key", "tenant"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A rate of one key or tenant."""

    name: str
    tokens: bool  # else requests
    holder: Holder
    rate: Rate

    @property
    def kind(self) -> Kind:
        return "tokens" if self.tokens else "requests"


@dataclass(frozen=True, slots=True)
class Slots:
    """How many requests of one key or tenant may run at once."""

    name: str
    holder: Holder
    limit: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All limits that one principal's requests meet."""

    buckets: tuple[Bucket, ...] = ()
    slots: tuple[Slots, ...] = ()
    closed: Kind | None = None  # a limit of 0: nothing may come

    def costs(self, tokens: int, requests: int = 1) -> list[int]:
        """The cost in each bucket, in their order."""
        return [tokens if bucket.tokens else requests for bucket in self.buckets]


@dataclass(slots=True)
class Grant:
    """A request that got in: what it took, for its settlement. `finish` it exactly once."""

    plan: Plan
    tokens: int
    levels: list[int]  # per bucket: how far its TAT lies ahead, in nanoseconds
    marks: list[int]  # per bucket: its TAT after the take, on the store's own clock and in its own unit
    lease: str = ""  # of its slots, where they are leased
    local: bool = False  # taken where the shared store could not be reached


@dataclass(slots=True)
class Refusal:
    """A request over a limit. Nothing was taken from any bucket."""

    over: Bucket | Slots
    wait: int  # nanoseconds until the rates would have it; 0: it waits for a slot
    levels: list[int] = field(default_factory=list)


def at_ease(plan: Plan, levels: list[int] | None, tokens: int) -> bool:
    """Whether every token bucket would be less than half used after that take."""
    if levels is None:
        return False
    pairs = zip(plan.buckets, levels, strict=True)
    return all(2 * (max(0, level) + b.rate.time_of(tokens)) < MINUTE for b, level in pairs if b.tokens)


class StoreUnavailable(Exception):
    """The shared store cannot be reached, and the operator wants no request served unchecked."""


class Limiter(Protocol):
    """Stores: `memory` (one process), `redis` (several replicas)."""

    async def start(self) -> None:
        """Load what was saved; begin to save."""

    async def stop(self) -> None:
        """Save for the last time."""

    def levels(self, plan: Plan) -> list[int] | None:
        """Per bucket, how far its TAT lies ahead, in nanoseconds; None: to know it, somebody would have to be asked."""

    async def admit(self, plan: Plan, tokens: int) -> Grant | Refusal:
        """Take one request and `tokens` from every bucket and slot of the plan, or nothing at all.

        Raises:
            StoreUnavailable: see there.
        """

    def finish(self, grant: Grant, tokens: int, counts: bool = True) -> None:
        """The request is over: `tokens` is what it cost in truth; not `counts`: its request is given back too.

        Never waits and never raises: it runs in the `finally` of cancelled requests.
        """


@lru_cache(maxsize=4096)
def plan_of(tenant: str, key_id: str | None, quota: Quota, tenant_quota: Quota) -> Plan | None:
    """The limits of a principal; None: it has none."""
    if not (quota.limited or tenant_quota.limited):
        return None
    buckets: list[Bucket] = []
    slots: list[Slots] = []
    closed: Kind | None = None
    owners: tuple[tuple[Holder, str, Quota], ...] = (
        ("key", f"{key_id or ''}:{{{tenant}}}", quota),  # braces: one shard of a Redis cluster holds a tenant's limits
        ("tenant", f"{{{tenant}}}", tenant_quota),
    )
    for holder, owner, limits in owners:
        rates: tuple[tuple[Kind, int | None], ...] = (
            ("requests", limits.requests_per_minute),
            ("tokens", limits.tokens_per_minute),
        )
        for kind, figure in rates:
            if figure is not None and figure < 1:
                closed = kind
            elif figure is not None:
                buckets.append(Bucket(f"{holder}:{kind}:{owner}", kind == "tokens", holder, Rate(figure)))
        if limits.concurrent is not None and limits.concurrent < 1:
            closed = "concurrent"
        elif limits.concurrent is not None:
            slots.append(Slots(f"{holder}:concurrent:{owner}", holder, limits.concurrent))
    return Plan(tuple(buckets), tuple(slots), closed)
