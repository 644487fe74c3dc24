"""Which engine gets a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from tests.server.remote.loopback import Engine, Gateway, answer, gateway, plain, until

CHAT = "/v1/chat/completions"


def web(front: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=front.url)


async def ports(front: Gateway, bodies: list[dict[str, Any]]) -> list[int]:
    async with web(front) as client:
        return [(await client.post(CHAT, json={"model": "tiny", **body})).json()["port"] for body in bodies]


def chat(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


async def test_a_conversation_stays_where_it_began() -> None:
    async with Engine() as a, Engine() as b, Engine() as c, gateway(a, b, c) as front:
        for number in range(6):
            turns = [chat(f"question {number}", *(["answer", "more"] * turn)) for turn in range(4)]
            assert len(set(await ports(front, turns))) == 1
        begun = await ports(front, [chat(f"question {number}") for number in range(30)])
        assert len(set(begun)) == 3


async def test_without_affinity_engines_take_turns() -> None:
    async with Engine() as a, Engine() as b, gateway(a, b, remote={"prefix_bytes": 0}) as front:
        assert set(Counter(await ports(front, [chat("the same")] * 10)).values()) == {5}


async def test_one_hot_prefix_does_not_overload_one_engine() -> None:
    go = asyncio.Event()

    async def slow(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await plain(engine, scope, receive, send)

    async with Engine(slow) as a, Engine(slow) as b, gateway(a, b) as front:
        asking = [asyncio.create_task(ports(front, [chat("hot")])) for _ in range(40)]
        await until(lambda: a.asked + b.asked == 40)
        assert max(a.asked, b.asked) <= 25
        assert front.metric("upstream_inflight", engine=a.url) == a.asked
        go.set()
        await asyncio.gather(*asking)


async def test_models() -> None:
    async with (
        Engine(models=("one", "both")) as a,
        Engine(models=("two", "both")) as b,
        gateway(a, b) as front,
        web(front) as client,
    ):
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert sorted(model["id"] for model in listed["data"]) == ["both", "one", "two"]
        assert listed["data"][0]["max_model_len"] == 7
        for index in range(4):
            for model, engine in (("one", a), ("two", b)):
                got = await client.post(CHAT, json={"model": model, **chat(str(index))})
                assert got.json()["port"] == engine.port
        got = await client.post(CHAT, json={"model": "three"})
        assert got.status_code == 404
        error = got.json()["error"]
        assert error["param"] == "model" and error["code"] == "model_not_found" and "three" in error["message"]


async def test_a_model_whose_only_engine_is_down_is_not_unknown() -> None:
    async with Engine(models=("one",)) as a, Engine(models=("two",)) as b, gateway(a, b) as front:
        await a.kill()
        await until(lambda: front.metric("upstream_up", engine=a.url) == 0)
        async with web(front) as client:
            assert (await client.post(CHAT, json={"model": "one"})).status_code == 503


async def test_a_route_that_only_some_engines_have() -> None:
    async def knows_not(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 404, b'{"detail":"Not Found"}')

    async with Engine(knows_not) as a, Engine() as b, gateway(a, b) as front, web(front) as client:
        for _ in range(4):
            assert (await client.get("/v1/thrift/methods")).json()["port"] == b.port
        got = await client.post(CHAT, json={"model": "tiny", **chat("to a")})
        assert got.status_code in (200, 404)  # with a model the first engine's word stands
        assert front.metric("upstream_retries_total", reason="not_found") == a.asked - (got.status_code == 404)


async def test_a_stored_response_is_found_wherever_it_is() -> None:
    async def knows(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, b'{"id":"resp_1"}')

    async def knows_not(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 404, b'{"error":{"message":"m","type":"t","param":null,"code":404}}')

    async with Engine(knows_not) as a, Engine(knows) as b, gateway(a, b) as front, web(front) as client:
        for _ in range(3):
            assert (await client.get("/v1/responses/resp_1")).json() == {"id": "resp_1"}
        b.handler = knows_not
        assert (await client.get("/v1/responses/resp_1")).status_code == 404
