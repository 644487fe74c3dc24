from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.asgi import FakeEngine, call
from tests.server.flow import CHAT, Client
from tests.server.stack import Stack
from thriftree.benchmarks.gateway_engine import TokenClock
from thriftree.server.admission.gate import Gate
from thriftree.server.body import Body
from thriftree.server.principal import Caps, Principal
from thriftree.server.sections import Deadlines

SHORT = {"max_tokens": 5, "messages": []}
LONG = {"max_tokens": 100_000, "messages": []}


async def until(condition: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def busy(queue: int = 10, limits: Deadlines | None = None, **more: Any) -> tuple[Stack, TokenClock, Client]:
    """A stack whose only place is taken, its engine, and who has the place."""
    engine = TokenClock(rate=200)
    stack = Stack(engine, Gate(queue, 10**6, 1), **({"limits": limits} if limits else {}), **more)
    return stack, engine, Client(stack, LONG)


async def test_free_places_are_taken_without_parsing() -> None:
    engine = FakeEngine([b"{}"])
    stack = Stack(engine, Gate(10, 1000, 1))
    for _ in range(3):
        assert (await call(stack, "POST", CHAT, b"{no json")).status == 200
    assert stack.gate.running == 0 and engine.seen == [b"{no json"] * 3
    assert stack.metric("thriftree_queue_wait_seconds_count") == 3


async def test_only_routes_that_compute_need_a_place() -> None:
    gate = Gate(0, 1, 1)
    gate.try_enter()
    stack = Stack(FakeEngine([b"{}"]), gate)
    assert (await call(stack, "GET", "/v1/models")).status == 200
    assert (await call(stack, "POST", "/v1/messages/count_tokens", {})).status == 200
    for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"):
        assert (await call(stack, "POST", path, {})).status == 429


async def test_waits_for_its_turn_and_is_seen_waiting() -> None:
    stack, engine, first = busy()
    await until(lambda: engine.running == 1)
    second = Client(stack, SHORT)
    await until(lambda: stack.gate.waiting == 1)
    assert stack.metric("thriftree_queue_depth") == 1 == stack.metric("thriftree_running")
    assert stack.metric("thriftree_queue_tokens") == 5 + len(b'{"max_tokens": 5, "messages": []}') // 4
    first.leave()
    await second.task
    assert (second.status, stack.gate.running, stack.gate.waiting, engine.most_running) == (200, 0, 0, 1)


async def test_a_full_queue_is_a_429_at_once() -> None:
    stack, engine, first = busy(queue=1)
    await until(lambda: engine.running == 1)
    second = Client(stack, SHORT)
    await until(lambda: stack.gate.waiting == 1)
    third = await Client(stack, SHORT).task
    assert (third.status, third.error["code"]) == (429, "overloaded") and third.seconds < 1
    assert int(third.headers["retry-after"]) >= 1
    assert stack.metric('thriftree_rejected_total{reason="overloaded"}') == 1
    for client in (second, first):
        client.leave()
        await client.task


async def test_a_client_that_leaves_the_queue_frees_its_place_and_never_reaches_the_engine() -> None:
    stack, engine, first = busy()
    await until(lambda: engine.running == 1)
    second = Client(stack, SHORT)
    await until(lambda: stack.gate.waiting == 1)
    left = asyncio.get_running_loop().time()
    second.leave()
    await second.task
    assert asyncio.get_running_loop().time() - left < 1 and stack.gate.waiting == 0
    first.leave()
    await first.task
    assert (engine.finished, engine.aborted, stack.gate.running) == (0, 1, 0)
    assert stack.metric('thriftree_requests_total{route="/v1/chat/completions",status="499",tenant="default"}') == 2


async def test_a_client_that_leaves_after_it_waited_is_heard_below() -> None:
    stack, engine, first = busy()
    await until(lambda: engine.running == 1)
    second = Client(stack, LONG)
    await until(lambda: stack.gate.waiting == 1)
    first.leave()
    await until(lambda: engine.aborted == 1 and engine.running == 1)
    second.leave()
    await second.task
    await until(lambda: engine.running == 0)
    assert engine.aborted == 2 and stack.gate.running == 0


@pytest.mark.parametrize(
    ("queue", "header", "code"), [(0.05, None, "queue"), (9, "0.05", "total"), (0, "0.05", "total")]
)
async def test_a_deadline_in_the_queue(queue: float, header: str | None, code: str) -> None:
    stack, engine, first = busy(limits=Deadlines(queue=queue, first_token=0, between_tokens=0, total=0))
    await until(lambda: engine.running == 1)
    second = await Client(stack, SHORT, headers={"x-thriftree-timeout": header} if header else {}).task
    assert (second.status, second.error["code"]) == (408, f"deadline_{code}") and 0.05 <= second.seconds < 5
    assert stack.gate.waiting == 0
    assert stack.metric(f'thriftree_rejected_total{{reason="deadline_{code}"}}') == 1
    assert stack.metric(f'thriftree_deadline_exceeded_total{{deadline="{code}"}}') == 1
    first.leave()
    await first.task


async def test_priority_inside_a_tenant_and_its_cap() -> None:
    known = {"gold": Principal("acme", caps=Caps(priority=-5)), "plain": Principal("acme", caps=Caps(priority=0))}
    stack, engine, first = busy(known=lambda name: known.get(name, Principal()))
    await until(lambda: engine.running == 1)
    done: list[str] = []
    clients = []
    wishes = (("a", "plain", 0, None), ("b", "plain", -9, None), ("c", "plain", 3, None), ("d", "gold", -3, None))
    for name, who, priority, claim in (
        *wishes,
        ("e", "plain", -9, "2"),
        ("f", "plain", 5, "-9"),
        ("g", "gold", 0, "-4"),
    ):
        headers = {"x-tenant": who} | ({"x-vllm-priority": claim} if claim else {})
        client = Client(stack, {**SHORT, "priority": priority}, headers=headers)
        client.task.add_done_callback(lambda _, name=name: done.append(name))
        clients.append(client.task)
        await until(lambda: stack.gate.waiting == len(clients))
    first.leave()
    await asyncio.gather(*clients)
    # The claims of b and f are cut to their key's best, where a was first; a header beats the body.
    assert done == ["g", "d", "a", "b", "f", "e", "c"]


async def test_closing_answers_503_also_to_those_who_wait() -> None:
    stack, engine, first = busy()
    await until(lambda: engine.running == 1)
    second = Client(stack, SHORT)
    await until(lambda: stack.gate.waiting == 1)
    stack.gate.close(7)
    for client in (await second.task, await Client(stack, SHORT).task):
        assert (client.status, client.error["code"], client.headers["retry-after"]) == (503, "draining", "7")
    first.leave()
    await first.task


async def test_who_watched_for_a_client_passes_on_that_it_left() -> None:
    inbox = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return inbox.pop(0)

    body = Body({"headers": []}, receive, 100, 5)
    await body.gone()
    assert [(await body())["type"] for _ in range(3)] == ["http.request", "http.disconnect", "http.disconnect"]


async def test_slow_senders_hold_no_place() -> None:
    """The body is read before a place is taken."""
    stack = Stack(TokenClock(), Gate(10, 10**6, 1))
    waiting = asyncio.Event()
    inside: list[int] = []

    async def receive() -> Any:
        inside.append(stack.gate.running)
        await waiting.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b"", "root_path": ""}
    slow = asyncio.create_task(stack(scope, receive, send))
    await until(lambda: inside)
    assert inside == [0] and stack.gate.try_enter()
    waiting.set()
    await slow
