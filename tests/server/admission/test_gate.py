from __future__ import annotations

import asyncio
from typing import Any

import pytest

from thriftree.server.admission.gate import Gate
from thriftree.server.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def soon() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def queue_up(gate: Gate, tenant: str = "a", priority: int = 0, cost: int = 10) -> asyncio.Task[None]:
    async def patiently() -> None:
        async with asyncio.timeout(5):
            await gate.wait(tenant, 1, priority, cost)

    return asyncio.create_task(patiently())


def filled(running: int = 1, **more: Any) -> Gate:
    gate = Gate(**{"max_queue": 10, "max_queue_tokens": 1000, "max_running": running, **more})
    for _ in range(running):
        assert gate.try_enter()
    return gate


async def test_no_limit_until_one_is_set() -> None:
    gate = Gate(10, 1000)
    assert all(gate.try_enter() for _ in range(100))
    gate.max_running = 100
    assert not gate.try_enter()
    waiting = queue_up(gate)
    await soon()
    gate.max_running = 101
    await waiting
    assert (gate.running, gate.waiting) == (101, 0)


async def test_places_go_to_who_waits_and_never_beyond_the_limit() -> None:
    gate, order, inside = Gate(100, 10**6, 3), [], 0

    async def one(index: int) -> None:
        nonlocal inside
        async with gate.enter("a", 1, -index, 1):
            inside += 1
            assert inside <= 3 >= gate.running
            order.append(index)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*map(one, range(20)))
    assert order == [0, 1, 2, *range(19, 2, -1)]
    assert (gate.running, gate.waiting, gate._waiters) == (0, 0, {})


async def test_no_barging() -> None:
    """A place that was given away but not yet taken belongs to the one who waited."""
    gate = filled()
    waiting = queue_up(gate)
    await soon()
    gate.leave()
    assert not gate.try_enter()
    await waiting


async def test_a_full_queue_refuses_at_the_measured_rate() -> None:
    clock = Clock()
    gate = filled(2, max_queue=20, clock=clock)
    waiting = [queue_up(gate) for _ in range(20)]
    await soon()
    for _ in range(10):
        clock.now += 0.5
        gate.leave()
        await soon()
        waiting.append(queue_up(gate))
        await soon()
    with pytest.raises(ApiError) as refused:
        gate.check("a", 1)
    assert (refused.value.status, refused.value.code) == (429, "overloaded")
    assert 10 <= int(refused.value.headers["Retry-After"]) <= 11  # 21 requests at 2 per second
    with pytest.raises(ApiError):
        gate.ask("a", 1, 0, 10)
    for task in waiting:
        task.cancel()
    await soon()
    assert gate.waiting == 0


async def test_a_light_tenant_takes_the_newest_place_of_a_flood() -> None:
    gate = filled(max_queue=3)
    flood = [queue_up(gate, "flood") for _ in range(3)]
    await soon()
    light = queue_up(gate, "light")
    await soon()
    with pytest.raises(ApiError) as displaced:
        await flood[2]
    assert (displaced.value.status, displaced.value.code) == (429, "overloaded")
    assert "Retry-After" in displaced.value.headers
    gate.leave()  # the flood's first, which came before
    gate.leave()
    await light
    assert not flood[1].done() and gate.waiting == 1
    flood[1].cancel()
    await soon()


async def test_cancelled_while_waiting_gives_up_at_once() -> None:
    gate = filled()
    first, second = queue_up(gate), queue_up(gate)
    await soon()
    first.cancel()
    await asyncio.sleep(0)
    assert (gate.waiting, gate.queue.tokens) == (1, 10)
    gate.leave()
    await second
    assert gate.running == 1


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancelled_in_the_moment_of_the_grant_loses_no_place(cancel_first: bool) -> None:
    gate = filled()
    first, second = queue_up(gate), queue_up(gate)
    await soon()
    if cancel_first:
        first.cancel()
        gate.leave()
    else:
        gate.leave()
        first.cancel()
    await second
    assert first.cancelled() and (gate.running, gate.waiting) == (1, 0)
    gate.leave()
    assert gate.try_enter()


async def test_closing_refuses_newcomers_and_what_waits() -> None:
    gate = filled()
    waiting = queue_up(gate)
    await soon()
    gate.close(7)
    for attempt in (waiting, queue_up(gate)):
        with pytest.raises(ApiError) as refused:
            await attempt
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "7")
    with pytest.raises(ApiError):
        gate.try_enter()
    assert (gate.running, gate.waiting) == (1, 0)
    gate.leave()
    assert gate.running == 0
