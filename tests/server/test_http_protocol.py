"""What arrives on the socket before there is a request: heads that are too large, too slow, or no HTTP at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.remote.loopback import Served, begin_stream, event, until
from thriftree.server.app import build
from thriftree.server.http_protocol import bounded
from thriftree.server.settings import Settings
from thriftree.server.state import GatewayState

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
BYTES, SECONDS = 8192, 0.3
COMPLETE = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


class Endless:
    """An engine that streams until the client has left."""

    def __init__(self) -> None:
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        await receive()
        leaving = asyncio.create_task(receive())
        await begin_stream(send)
        while not leaving.done():
            await event(send, b"1")
            await asyncio.sleep(0.005)
        self.running -= 1


@asynccontextmanager
async def served() -> AsyncIterator[tuple[int, Endless]]:
    """The gateway's port, and the engine behind it."""
    state, engine = GatewayState(), Endless()
    state.engine_app, state.phase = engine, "ready"
    async with Served(build(Settings(), state), bounded(BYTES, SECONDS)) as server:
        yield server.port, engine


async def told(port: int, *parts: bytes, pause: float = 0, patience: float = 1) -> bytes:
    """Everything that the server says to that until it closes, or until so many seconds after the last part."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = bytearray()

    async def listen() -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                answer.extend(chunk)

    listening = asyncio.create_task(listen())
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
    await asyncio.wait([listening], timeout=patience)
    listening.cancel()
    writer.close()
    return bytes(answer)


def refused(answer: bytes, status: int) -> Any:
    """The error of the one answer, in OpenAI's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_request_as_it_should_be() -> None:
    async with served() as (port, _):
        answer = await told(port, GET + b"x-large: " + b"a" * 7000 + b"\r\n\r\n" + GET + b"\r\n")
        assert answer.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    "parts",
    [
        (GET + b"x: " + b"a" * 9000 + b"\r\n\r\n",),
        (GET, b"x: ", *[b"a" * 65536] * 4),
        (GET, *[b"y: b\r\n" * 1000] * 20),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",),
        (GET + b"".join(b"h%d: 1\r\n" % i for i in range(300)) + b"\r\n",),
    ],
    ids=["whole", "endless line", "endless headers", "long path", "many headers"],
)
async def test_heads_over_the_limit(parts: tuple[bytes, ...]) -> None:
    async with served() as (port, _):
        assert refused(await told(port, *parts), 431)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "tail",
    [b"1;" + b"x" * 300_000, b"1\r\na\r\n0\r\nt: " + b"x" * 300_000, b"1\r\na\r\n0\r\n" + b"t: x\r\n" * 60_000],
    ids=["chunk extension", "trailer", "trailers"],
)
async def test_framing_of_a_body_counts_too(tail: bytes) -> None:
    """The app waits for a body by then and nothing was answered; the connection just ends, and at once."""
    async with served() as (port, _):
        begun = time.monotonic()
        await told(port, COMPLETE + b"transfer-encoding: chunked\r\n\r\n", tail, patience=9)
        assert time.monotonic() - begun < 8


async def test_tiny_chunks_are_fine() -> None:
    async with served() as (port, _):
        body = b"".join(b"1\r\n \r\n" for _ in range(150_000)) + b"2\r\n{}\r\n0\r\n\r\n"
        answer = await told(port, COMPLETE + b"transfer-encoding: chunked\r\n\r\n", body, patience=3)
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\x00" * 64,
        b"SSH-2.0-x\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        GET + b"x: a\x00b\r\n\r\n",
        GET + b"x: a\r\n b\r\n\r\n",
        GET + b"x y: a\r\n\r\n",
        GET + b"content-length: 99999999999999999999999\r\n\r\n",
        GET + b"content-length: -1\r\n\r\n",
        GET + b"content-length: 2\r\ncontent-length: 3\r\n\r\nab",
        GET + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\nab",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    ],
)
async def test_no_http(garbage: bytes) -> None:
    async with served() as (port, _):
        assert refused(await told(port, garbage), 400)["code"] == "invalid_http"


async def test_a_head_that_drips() -> None:
    async with served() as (port, _):
        begun = time.monotonic()
        answer = await told(port, *(bytes([byte]) for byte in GET), pause=0.05)
        assert refused(answer, 408)["code"] == "header_timeout"
        begun = time.monotonic()
        answer = await told(port, GET + b"\r\n", *(bytes([byte]) for byte in GET), pause=0.05)
        assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answer
        assert time.monotonic() - begun < 8


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with served() as (port, _):
        begun = time.monotonic()
        assert await told(port, patience=9) == b""
        assert time.monotonic() - begun < 8


async def test_a_body_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer came early; the client may finish what it sends, but not drip for ever."""
    monkeypatch.setattr("thriftree.server.http_protocol._LINGER_SECONDS", 0.3)
    head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    async with served() as (port, _):
        assert (await told(port, head, b"a" * 1000 + GET + b"\r\n")).count(b"HTTP/1.1 ") == 2
        begun = time.monotonic()
        assert (await told(port, head, *[b"a"] * 40, pause=0.02, patience=9)).startswith(b"HTTP/1.1 404")
        assert time.monotonic() - begun < 8
        begun = time.monotonic()
        assert (await told(port, head, b"a" * 1000, pause=0.05, patience=9)).count(b"HTTP/1.1 404") == 1
        assert time.monotonic() - begun < 8


async def test_whoever_pipelines_is_heard_leaving() -> None:
    """uvicorn tells only the last request of a connection that it ended; the running one must not go on for nobody."""
    async with served() as (port, engine):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(COMPLETE + b"content-length: 2\r\n\r\n{}" + GET + b"\r\n" + GET + b"\r\n")
        await reader.readuntil(b"data: 1")
        assert engine.running == 1
        writer.close()
        await until(lambda: engine.running == 0)


async def test_pipelines_are_bounded() -> None:
    async with served() as (port, engine):
        await told(port, COMPLETE + b"content-length: 2\r\n\r\n{}", (GET + b"\r\n") * 40)
        await until(lambda: engine.running == 0)
        assert (await told(port, (GET + b"\r\n") * 16)).count(b"HTTP/1.1 200") == 16


async def test_garbage_behind_a_request_does_not_end_up_in_its_answer() -> None:
    async with served() as (port, engine):
        answer = await told(port, COMPLETE + b"content-length: 2\r\n\r\n{}", b"\x00garbage", pause=0.05)
        assert answer.count(b"HTTP/1.1 ") == 1 and b"invalid_http" not in answer
        await until(lambda: engine.running == 0)


async def test_http_1_0() -> None:
    async with served() as (port, _):
        answer = await told(port, b"GET /health HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
