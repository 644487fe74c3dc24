"""The gate under load, in front of an engine with a token clock: what an overloaded server owes to whom."""

from __future__ import annotations

import asyncio
import gc
import random
from time import monotonic
from typing import Any

import pytest

from tests.server.flow import Client
from tests.server.stack import Stack
from tests.server.test_admission_layer import until
from thriftree.benchmarks.gateway_engine import TokenClock
from thriftree.server.admission.gate import Gate
from thriftree.server.sections import Deadlines

SLOTS, TOKENS, SERVICE, FLOOD = 4, 20, 0.05, 200
CAPACITY = SLOTS / SERVICE
BODY = {"max_tokens": TOKENS, "messages": [{"role": "user", "content": "hello"}]}


def engine() -> TokenClock:
    return TokenClock(slots=SLOTS, rate=TOKENS / SERVICE)


async def closed_loop(stack: Stack, clients: int, seconds: float, tenant: str = "default") -> list[Client]:
    """So many clients, each asking again as soon as it is answered."""
    end, done = monotonic() + seconds, list[Client]()

    async def one() -> None:
        while monotonic() < end:
            done.append(await Client(stack, BODY, headers={"x-tenant": tenant}).task)

    await asyncio.gather(*(one() for _ in range(clients)))
    return done


async def open_loop(stack: Stack, rate: float, seconds: float, tenant: str = "flood") -> list[Client]:
    """So many requests per second, whatever becomes of them."""
    begun, clients = monotonic(), list[Client]()
    for index in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + index / rate - monotonic()))
        clients.append(Client(stack, {**BODY, "stream": index % 2 == 0}, headers={"x-tenant": tenant}))
    return clients


async def finished(clients: list[Client]) -> list[Client]:
    return await asyncio.gather(*(client.task for client in clients))


async def test_ten_times_too_much() -> None:
    """A figure that another process spoilt is taken once more; what is no figure must hold each time."""
    for attempt in range(3):
        goodput, slow = await ten_times(seconds=2.0)
        if attempt == 2 or (goodput >= 0.95 and slow < 0.02):
            break
    assert goodput >= 0.95 and slow < 0.02


async def ten_times(seconds: float) -> tuple[float, float]:
    """Goodput as a share of that at capacity, and the p99 of refusals in seconds."""
    reference = engine()
    begun = monotonic()
    await closed_loop(Stack(reference, Gate(0, 1, SLOTS)), SLOTS, seconds)
    at_capacity = reference.finished / (monotonic() - begun)

    loaded = engine()
    stack, begun = Stack(loaded, Gate(16, 10**6, SLOTS)), monotonic()
    clients = await open_loop(stack, 10 * CAPACITY, seconds)
    goodput = loaded.finished / (monotonic() - begun)
    await finished(clients)

    answered = [client for client in clients if client.status == 200]
    refused = [client for client in clients if client.status == 429]
    print(
        f"\ngoodput {goodput:.1f}/s of {at_capacity:.1f}/s; {len(answered)} answered, {len(refused)} refused", end="; "
    )
    slowest = sorted(client.seconds for client in refused)
    print(f"429 after {1e3 * slowest[len(slowest) // 2]:.2f} ms (median), {1e3 * slowest[-1]:.2f} ms (slowest)")
    assert len(answered) + len(refused) == len(clients) and all(client.whole for client in clients)
    assert len(refused) > 0.8 * len(clients)
    assert all(1 <= int(client.headers["retry-after"]) <= 5 for client in refused)
    assert (loaded.running, loaded.most_running, stack.gate.running, stack.gate.waiting) == (0, SLOTS, 0, 0)
    assert stack.metric('thriftree_rejected_total{reason="overloaded"}') == len(refused)
    return goodput / at_capacity, slowest[int(0.99 * len(slowest))]


async def test_retry_after_is_how_long_the_queue_takes() -> None:
    slow = TokenClock(slots=2, rate=100)  # 0.2 s each: 10 requests per second
    stack = Stack(slow, Gate(30, 10**6, 2))
    clients = await open_loop(stack, 100, 1)
    waits = [int(client.headers["retry-after"]) for client in clients[-20:] if client.status == 429]
    assert waits and all(2 <= wait <= 8 for wait in waits)  # 31 requests; a busy machine drains more slowly
    for client in clients:
        client.leave()
    await finished(clients)


async def light_tenant(stack: Stack, loaded: TokenClock, requests: int) -> list[int]:
    """For each of its requests, one after the other: answers that the engine gave until its own, that one included."""
    rounds = []
    for _ in range(requests):
        before = loaded.finished
        assert (await Client(stack, BODY, headers={"x-tenant": "light"}).task).status == 200
        rounds.append(loaded.finished - before)
    return rounds


async def flooding(stack: Stack, clients: list[Client]) -> None:
    """As many requests as are let in, at every moment; until cancelled."""
    while True:
        while stack.gate.waiting < FLOOD:
            clients.append(Client(stack, BODY, headers={"x-tenant": "flood"}))
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)


async def test_a_light_tenant_beside_a_flood() -> None:
    """Counted in answers and not in seconds: a busy machine makes all slower, and nobody wait for more answers."""
    alone = engine()
    assert set(await light_tenant(Stack(alone, Gate(FLOOD, 10**6, SLOTS)), alone, 10)) == {1}
    loaded, clients = engine(), list[Client]()
    crowded = Stack(loaded, Gate(FLOOD, 10**6, SLOTS))
    flood = asyncio.create_task(flooding(crowded, clients))
    await until(lambda: crowded.gate.waiting == FLOOD)
    beside = await light_tenant(crowded, loaded, 20)
    flood.cancel()
    assert crowded.gate.waiting >= FLOOD - SLOTS
    for client in clients:
        client.leave()
    await finished(clients)
    print(f"\nanswers until the light tenant's own, beside a flood of {FLOOD}: {sorted(beside)}")
    assert sorted(beside)[len(beside) // 2] <= 2 * SLOTS  # a place comes free, and one service time passes
    assert max(beside) <= 3 * SLOTS


async def test_weights_are_shares() -> None:
    from thriftree.server.principal import Principal

    weights = {"one": 1.0, "three": 3.0}
    stack = Stack(engine(), Gate(200, 10**6, SLOTS), known=lambda name: Principal(name, weight=weights[name]))
    loads = [asyncio.create_task(open_loop(stack, 2 * CAPACITY, 1.5, name)) for name in weights]
    one, three = await asyncio.gather(*loads)
    served = [sum(client.status == 200 for client in clients) for clients in (one, three)]
    for client in one + three:
        client.leave()
    await finished(one + three)
    assert served[1] / served[0] == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize("limits", [{}, {"first_token": 0.02, "between_tokens": 0.05, "total": 0.2, "queue": 0.1}])
async def test_a_thousand_clients_that_vanish_leave_nothing(limits: dict[str, float]) -> None:
    chance = random.Random(4)
    loaded = TokenClock(slots=16, rate=300, first=0.01)
    deadlines = Deadlines(**{"queue": 0, "first_token": 0, "between_tokens": 0, "total": 0, **limits})
    stack = Stack(loaded, Gate(60, 10**6, 8), deadlines)
    loop, clients = asyncio.get_running_loop(), list[Client]()
    before = len(asyncio.all_tasks())
    for index in range(1000):
        body: dict[str, Any] = {**BODY, "stream": chance.random() < 0.5, "max_tokens": chance.randint(1, 200)}
        clients.append(Client(stack, body, headers={"x-tenant": f"tenant-{index % 7}"}))
        loop.call_later(chance.expovariate(1 / 0.15), clients[-1].leave)
        await asyncio.sleep(0.001 if index % 3 else 0)
    await finished(clients)
    await until(lambda: loaded.running == 0 == loaded.waiting)
    statuses = {client.status for client in clients}
    assert {0, 200} <= statuses <= {0, 200, 408, 429} and (408 in statuses) == bool(limits)
    queue = stack.gate.queue
    assert (stack.gate.running, queue.requests, queue.tokens, stack.gate._waiters) == (0, 0, 0, {})
    assert not (queue._tenants or queue._order or queue._finished)
    await asyncio.sleep(0.01)
    gc.collect()
    assert len(asyncio.all_tasks()) == before
