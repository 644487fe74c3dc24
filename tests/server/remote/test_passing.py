"""What crosses the gateway: bytes in, bytes out, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import os
import random

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.server.remote.loopback import Engine, answer, begin_stream, event, gateway

CHAT = "/v1/chat/completions"
BODY = (
    b'{"model" : "tiny",\t"messages": [{"role":"user","content":"hi \\u00e9"}],'
    b' "vendor": {"x": [1.0, 1e3]}, "thrift": {"kv": {"method": "ours_of_2030"}}}'
)


async def test_bodies_and_unknown_fields_are_untouched_both_ways() -> None:
    reply = b'{ "choices" : [], "vendor":{"speculative":1.50},\n"usage":{"prompt_tokens":3,"completion_tokens":2}}'

    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, reply, (b"x-vendor", b"a"), (b"x-vendor", b"\xc3\xa9"), (b"x-thing", b"1"))

    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        got = await client.post(f"{CHAT}?a=%2F&b=%20+", content=BODY, headers={"X-Mine": "1"})
        assert got.status_code == 200 and got.content == reply
        assert engine.bodies == [BODY]
        assert engine.scopes[0]["query_string"] == b"a=%2F&b=%20+"
        raw = [pair for pair in got.headers.raw if pair[0].startswith(b"x-") and pair[0] != b"x-request-id"]
        assert raw == [(b"x-vendor", b"a"), (b"x-vendor", b"\xc3\xa9"), (b"x-thing", b"1")]
        assert engine.header("x-mine") == [b"1"]
        assert len(got.headers.get_list("date")) == len(got.headers.get_list("server")) == 1


async def test_ids_traces_and_keys() -> None:
    async with Engine() as engine, gateway(engine, remote={"key": "own"}) as front:
        async with httpx.AsyncClient(base_url=front.url) as client:
            sent = {"x-request-id": "r-1", "traceparent": "00-ab-cd-01", "authorization": "Bearer tt-secret"}
            got = await client.post(CHAT, json={"model": "tiny"}, headers=sent)
        assert got.headers["x-request-id"] == "r-1"
        assert engine.header("x-request-id") == [b"r-1"] and engine.header("traceparent") == [b"00-ab-cd-01"]
        assert engine.header("authorization") == [b"Bearer own"]
        assert engine.header("accept-encoding") == [b"gzip, deflate"]  # the client's own, nothing of ours


async def test_without_a_key_of_its_own_the_gateway_shows_none() -> None:
    async with Engine() as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        await client.post(CHAT, json={"model": "tiny"}, headers={"authorization": "Bearer tt-secret"})
        assert engine.header("authorization") == []


@pytest.mark.parametrize("kind", [b"application/octet-stream", b"text/event-stream", b"application/json"])
async def test_random_bytes_in_random_chunks(kind: bytes) -> None:
    dice = random.Random(7)
    chunks = [os.urandom(dice.choice([1, 10, 1000, 70_000])) for _ in range(60)]

    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if dice.random() < 0.3:
                await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b""})

    upload = os.urandom(3 << 20)  # no JSON, and larger than what goes out in one piece
    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        got = await client.post(CHAT, content=upload)
        assert got.content == b"".join(chunks)
        assert engine.bodies == [upload]


async def test_chunks_are_not_held_back() -> None:
    go = asyncio.Event()

    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await begin_stream(send)
        await event(send, b'{"n":1}')
        await go.wait()
        await send({"type": "http.response.body", "body": b'data: {"half', "more_body": True})
        go.clear()
        await go.wait()
        await send({"type": "http.response.body", "body": b'":1}\n\n'})

    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        got = await client.send(client.build_request("POST", CHAT, json={"model": "tiny"}), stream=True)
        chunks = got.aiter_raw()
        async with asyncio.timeout(5):
            assert await anext(chunks) == b'data: {"n":1}\n\n'
            go.set()
            assert await anext(chunks) == b'data: {"half'
            go.set()
            assert await anext(chunks) == b'":1}\n\n'


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_errors_pass_and_are_not_retried(status: int) -> None:
    error = b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}'

    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, status, error, (b"retry-after", b"7"))

    async with Engine(handler) as one, Engine(handler) as two, gateway(one, two) as front:
        async with httpx.AsyncClient(base_url=front.url) as client:
            got = await client.post(CHAT, json={"model": "tiny"})
        assert (got.status_code, got.content, got.headers["retry-after"]) == (status, error, "7")
        assert one.asked + two.asked == 1


async def test_get_routes_of_the_engines() -> None:
    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, scope["path"].encode())

    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        for path in ("/version", "/v1/thrift/methods"):
            assert (await client.get(path)).text == path
        assert (await client.post("/tokenize", json={})).status_code == 404  # still closed
        assert engine.asked == 2


async def test_under_a_root_path() -> None:
    from thriftree.server.remote.outgoing import _target

    scope = {"path": "/llm/v1/models", "raw_path": b"/llm/v1/models", "root_path": "/llm", "query_string": b"a"}
    assert _target(scope) == "/v1/models?a"
    assert _target({**scope, "root_path": ""}) == "/llm/v1/models?a"


async def test_counts_of_the_engine_reach_report_and_metrics() -> None:
    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await begin_stream(send)
        await event(send, b'{"choices":[{"delta":{"content":"a"}}]}')
        usage = b'"usage":{"prompt_tokens":3,"completion_tokens":8,"thrift":{"exact":true,"steps":4,'
        await event(send, b'{"choices":[],' + usage + b'"speculation":{"method":"suffix","drafted":9,"accepted":4}}}}')
        await event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        await client.post(CHAT, json={"model": "tiny", "stream": True})
        assert front.metric("tenant_tokens_total", tenant="default", kind="prompt") == 3
        assert front.metric("tenant_tokens_total", tenant="default", kind="completion") == 8
        assert front.metric("accepted_tokens_total", method="suffix") == 4
        assert front.metric("upstream_requests_total", engine=engine.url, outcome="answered") == 1
        assert front.metric("upstream_inflight", engine=engine.url) == 0
        assert front.metric("upstream_up", engine=engine.url) == 1


async def test_tokens_of_an_engine_that_counts_no_steps() -> None:
    async with Engine() as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        await client.post(CHAT, json={"model": "tiny"})
        assert front.metric("tenant_tokens_total", tenant="default", kind="completion") == 2


async def test_compressed_answers_stay_compressed() -> None:
    packed = gzip.compress(b'{"choices":[]}')

    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, packed, (b"content-encoding", b"gzip"))

    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        request = client.build_request("POST", CHAT, json={"model": "tiny"})
        got = await client.send(request, stream=True)
        assert b"".join([part async for part in got.aiter_raw()]) == packed
        assert got.headers["content-encoding"] == "gzip"


async def test_the_engine_sees_no_header_that_the_client_did_not_send() -> None:
    async with Engine() as engine, gateway(engine) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\nx-odd: \xff\r\n\r\n{{}}".encode("latin-1")
        )
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        seen = {name: value for name, value in engine.scopes[0]["headers"]}
        assert seen.keys() == {b"host", b"content-length", b"x-request-id"}
        assert seen[b"host"] == f"127.0.0.1:{engine.port}".encode() and seen[b"content-length"] == b"2"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_other_methods_are_the_engines_business(method: str) -> None:
    async def handler(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"x-method", scope["method"].encode())]})
        await send({"type": "http.response.body", "body": b""})

    async with Engine(handler) as engine, gateway(engine) as front, httpx.AsyncClient(base_url=front.url) as client:
        got = await client.request(method, CHAT)
        assert (got.status_code, got.headers["x-method"]) == (204, method)
