"""Engines that die, drain, hang and come back; clients that leave. Over real sockets."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.server.remote.loopback import (
    Engine,
    Gateway,
    Handler,
    answer,
    begin_stream,
    endless,
    event,
    gateway,
    plain,
    until,
)

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def ask(front: Gateway, **more: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=front.url, timeout=10) as client:
        return await client.post(CHAT, json={**BODY, **more})


def events(text: bytes) -> list[bytes]:
    return [part.removeprefix(b"data: ") for part in text.split(b"\n\n") if part]


async def test_an_engine_killed_in_a_stream_ends_it_with_an_error_event() -> None:
    async with Engine(endless) as one, Engine(endless) as two, gateway(one, two, remote={"prefix_bytes": 0}) as front:
        async with httpx.AsyncClient(base_url=front.url, timeout=10) as client:

            async def stream() -> bytes:
                async with client.stream("POST", CHAT, json=BODY) as got:
                    return await got.aread()

            tasks = [asyncio.create_task(stream()) for _ in range(2)]
            await until(lambda: one.asked == two.asked == 1)
            await asyncio.sleep(0.05)
            await one.kill()
            done, rest = await asyncio.wait(tasks, timeout=2, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == len(rest) == 1
            last = json.loads(events(done.pop().result())[-1])
            assert last["error"]["code"] == "engine_lost"
            await asyncio.sleep(0.05)
            assert not two.left.is_set()
            two.handler = plain
            for _ in range(5):
                assert (await ask(front)).json()["port"] == two.port
            for task in rest:
                task.cancel()
        assert front.metric("upstream_requests_total", engine=one.url, outcome="broken") == 1
        await until(lambda: front.metric("upstream_up", engine=one.url) == 0)


async def test_an_event_cut_in_the_middle_ends_before_the_error() -> None:
    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await begin_stream(send)
        await send({"type": "http.response.body", "body": b'data: {"cho', "more_body": True})
        await asyncio.sleep(0.05)
        await engine.kill()

    async with Engine(handler) as engine, gateway(engine) as front:
        parts = events((await ask(front, stream=True)).content)
        assert parts[0] == b'{"cho' and len(parts) == 2
        assert json.loads(parts[1])["error"]["code"] == "engine_lost"


@pytest.mark.parametrize("length", [(), ((b"content-length", b"100"),)])
async def test_an_answer_cut_in_the_middle_closes_the_connection(length: tuple[tuple[bytes, bytes], ...]) -> None:
    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        head = [(b"content-type", b"application/json"), *length]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b'{"choices":', "more_body": True})
        await asyncio.sleep(0.05)
        await engine.kill()

    async with Engine(handler) as engine, gateway(engine) as front:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(front)


def dying(deaths: list[int]) -> Handler:
    """Closes the connection before the answer, and goes on living."""

    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        deaths.append(engine.port)
        for connection in list(engine._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(0.01)

    return handler


async def test_a_connection_closed_before_the_answer_is_tried_once_elsewhere() -> None:
    deaths: list[int] = []
    async with Engine(dying(deaths)) as one, Engine(plain) as two, gateway(one, two) as front:
        for _ in range(6):
            got = await ask(front)
            assert got.status_code == 200 and got.json()["port"] == two.port
            await until(lambda: front.state.phase == "ready")
        assert front.metric("upstream_retries_total", reason="reset") == len(deaths)


async def test_a_request_that_kills_engines_does_not_kill_all_of_them() -> None:
    deaths: list[int] = []
    handler = dying(deaths)
    async with Engine(handler) as a, Engine(handler) as b, Engine(handler) as c, gateway(a, b, c) as front:
        got = await ask(front)
        assert got.status_code == 502 and got.json()["error"]["code"] == "engine_failed"
        assert len(deaths) == 2


async def test_a_dead_kept_connection_of_the_only_engine_is_no_error() -> None:
    """An engine closes idle connections when it likes; a request that meets that is sent again on a new one."""
    deaths: list[int] = []
    kill = dying(deaths)

    async def once(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        engine.handler = plain
        await kill(engine, scope, receive, send)

    async with Engine() as engine, gateway(engine, remote={"health_seconds": 30}) as front:
        assert (await ask(front)).status_code == 200
        engine.handler = once
        assert (await ask(front)).status_code == 200
        assert len(deaths) == 1 and front.metric("upstream_retries_total", reason="reset") == 1


async def test_a_new_connection_that_breaks_is_not_tried_at_the_same_engine() -> None:
    deaths: list[int] = []
    async with Engine(dying(deaths)) as engine, gateway(engine, remote={"health_seconds": 30}) as front:
        assert (await ask(front)).status_code == 502
        assert len(deaths) == 1


async def test_refused_connections_go_elsewhere_and_the_engine_comes_back() -> None:
    async with Engine() as one, Engine() as two, gateway(one, two, remote={"health_seconds": 30}) as front:
        await two.kill()
        for index in range(8):
            assert (await ask(front, messages=[{"role": "user", "content": str(index)}])).json()["port"] == one.port
        assert front.metric("upstream_retries_total", reason="refused") == 1  # and then it is known


async def test_a_draining_engine_is_left_and_its_503_is_not_shown() -> None:
    async def draining(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 503, b"{}", (b"retry-after", b"5"))

    async with Engine(draining) as one, Engine() as two, gateway(one, two, remote={"health_seconds": 30}) as front:
        for index in range(8):
            assert (await ask(front, messages=[{"role": "user", "content": str(index)}])).json()["port"] == two.port
        assert one.asked == 1 == front.metric("upstream_retries_total", reason="draining")
        assert front.metric("upstream_breaker_open", engine=one.url) == 0


async def test_a_503_passes_where_nobody_else_is_left_or_it_names_no_time() -> None:
    error = b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}'
    headers: list[tuple[bytes, bytes]] = [(b"retry-after", b"5")]

    async def busy(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 503, error, *headers)

    async with Engine(busy) as one, gateway(one) as front:
        got = await ask(front)
        assert (got.status_code, got.content, got.headers["retry-after"]) == (503, error, "5")
    headers.clear()
    async with Engine(busy) as one, Engine(busy) as two, gateway(one, two) as front:
        assert (await ask(front)).status_code == 503
        assert one.asked + two.asked == 1


async def test_no_engine_at_all() -> None:
    async with Engine() as engine, gateway(engine) as front:
        await engine.kill()
        await until(lambda: front.state.phase == "no_engine")
        got = await ask(front)
        assert got.status_code == 503 and int(got.headers["retry-after"]) >= 1
        assert got.json()["error"]["code"] == "no_engine"
        async with httpx.AsyncClient(base_url=front.url) as client:
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200


async def test_ready_follows_health() -> None:
    async with Engine(ready=503) as engine, gateway(engine) as front:
        assert front.state.phase == "no_engine"
        engine.ready = 200
        await until(lambda: front.state.phase == "ready")
        engine.ready = 404  # a stock vLLM server: `/health` counts
        await asyncio.sleep(0.3)
        assert front.state.phase == "ready"
        engine.ready = 503
        await until(lambda: front.state.phase == "no_engine")
        front.state.phase = "draining"
        engine.ready = 200
        await asyncio.sleep(0.3)
        assert front.state.phase == "draining"


async def test_a_passing_refusal_between_two_checks_leaves_no_trace() -> None:
    async with Engine() as engine, gateway(engine) as front:
        upstream = next(iter(front.engines.all.values()))
        for _ in range(5):
            upstream.found(False, "refusing connections")
            front.engines.changed()
            assert front.state.phase == "no_engine"
            await until(lambda: front.state.phase == "ready", 5)


async def test_an_engine_that_hangs_is_found_out() -> None:
    async with Engine() as one, Engine() as two, gateway(one, two, remote={"connect_seconds": 0.2}) as front:
        for connection in list(one._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        one.hang()
        await until(lambda: front.metric("upstream_up", engine=one.url) == 0, 8)
        assert (await ask(front)).json()["port"] == two.port


async def test_the_breaker_opens_and_the_engine_is_tried_again() -> None:
    deaths: list[int] = []
    async with Engine(dying(deaths)) as one, gateway(one, remote={"health_seconds": 30}) as front:
        for _ in range(6):
            got = await ask(front)
        assert got.status_code == 503 and got.headers["retry-after"] == "1"
        assert front.metric("rejected_total", reason="no_engine") >= 1
        assert front.metric("upstream_breaker_open", engine=one.url) == 1 and len(deaths) <= 6
        one.handler = plain
        await asyncio.sleep(1.05)
        assert (await ask(front)).status_code == 200
        assert front.metric("upstream_breaker_open", engine=one.url) == 0


@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_leaves_closes_the_engines_connection_at_once(begun: bool) -> None:
    async def waiting(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        engine.left.set()

    async with Engine(endless if begun else waiting) as engine, gateway(engine) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        body = json.dumps(BODY).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await (reader.read(100) if begun else until(lambda: engine.asked == 1))
        writer.transport.abort()
        loop = asyncio.get_running_loop()
        left = loop.time()
        await asyncio.wait_for(engine.left.wait(), 2)
        assert loop.time() - left < 1
        await until(lambda: front.metric("upstream_requests_total", engine=engine.url, outcome="left") == 1)
        assert front.metric("upstream_inflight", engine=engine.url) == 0
        status = {"route": CHAT, "status": "499", "tenant": "default"}
        await until(lambda: front.metric("requests_total", **status) == 1)


async def test_a_slow_client_slows_the_engine_and_fills_no_memory() -> None:
    sent = 0

    async def fast(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await begin_stream(send)
        while sent < 64 << 20:
            await event(send, b"x" * 65536)
            sent += 65536

    async with Engine(fast) as engine, gateway(engine) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, limit=1024)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        await reader.read(100)
        await asyncio.sleep(0.5)
        before = sent
        await asyncio.sleep(0.3)
        assert sent == before < 32 << 20  # socket buffers and no more
        writer.transport.abort()
