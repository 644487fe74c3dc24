"""What a client of a limited key sees, and what a request costs in the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.asgi import Answer, call
from tests.server.quota.stack import CHAT, Engine, Stack
from thriftree.server.errors import ApiError
from thriftree.server.principal import Quota
from thriftree.server.quota.gcra import SECOND
from thriftree.server.quota.limiter import Grant, Plan, Refusal, StoreUnavailable
from thriftree.server.quota.memory import MemoryLimiter

BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


async def chat(stack: Stack, **more: Any) -> Answer:
    return await call(stack.app, "POST", CHAT, {**BODY, **more})


def limits(answer: Answer) -> dict[str, str]:
    return {name[12:]: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}


async def test_headers_of_every_answer() -> None:
    stack = Stack(Engine(counted=(100, 20)), Quota(requests_per_minute=60, tokens_per_minute=6000))
    answer = await chat(stack)
    assert answer.status == 200 and limits(answer) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1s",
        "limit-tokens": "6000",
        "remaining-tokens": "5850",
        "reset-tokens": "1.5s",
    }
    assert limits(await chat(stack))["remaining-tokens"] == "5730"  # 120 in truth, and 150 now


async def test_the_tighter_of_key_and_tenant_is_told() -> None:
    stack = Stack(Engine(), Quota(requests_per_minute=60), Quota(requests_per_minute=3, tokens_per_minute=1000))
    told = limits(await chat(stack))
    assert (told["limit-requests"], told["remaining-requests"], told["remaining-tokens"]) == ("3", "2", "850")


async def test_too_many_requests() -> None:
    stack = Stack(engine := Engine(), Quota(requests_per_minute=2))
    assert [(await chat(stack)).status for _ in range(3)] == [200, 200, 429]
    answer = await chat(stack)
    assert answer.json["error"] == {
        "message": "rate limit reached for key k1 of tenant acme: 2 requests a minute; try again in 30s",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("30", "30000")
    assert limits(answer)["remaining-requests"] == "0" and limits(answer)["reset-requests"] == "1m0s"
    assert stack.rejected("quota_requests") == 2 and engine.reached == 2
    stack.now += 30 * SECOND - 1
    assert (await chat(stack)).status == 429
    stack.now += 1
    assert (await chat(stack)).status == 200


async def test_too_many_tokens() -> None:
    stack = Stack(Engine(counted=(100, 380)), tenant=Quota(tokens_per_minute=600))
    assert (await chat(stack)).status == 200
    answer = await chat(stack)
    assert (answer.status, answer.json["error"]["type"]) == (429, "tokens")
    assert "tenant acme: 600 tokens a minute, 120 left, 150 needed; try again in 3s" in answer.json["error"]["message"]
    assert answer.headers["retry-after"] == "3" and stack.rejected("quota_tokens") == 1


async def test_a_prompt_that_can_never_fit_is_no_429() -> None:
    stack = Stack(engine := Engine(), Quota(requests_per_minute=9), Quota(tokens_per_minute=99))
    answer = await chat(stack)
    assert (answer.status, answer.json["error"]["code"]) == (400, "prompt_exceeds_quota")
    assert answer.json["error"]["param"] == "messages" and "99 tokens a minute" in answer.json["error"]["message"]
    assert "retry-after" not in answer.headers and engine.reached == 0 and stack.rejected("quota_tokens") == 1


async def test_a_wish_for_completion_tokens_always_fits_an_idle_bucket() -> None:
    stack = Stack(Engine(), Quota(tokens_per_minute=1000))
    assert limits(await chat(stack, max_tokens=1_000_000))["remaining-tokens"] == "650"  # 100 and a quarter
    almost = Stack(Engine(), Quota(tokens_per_minute=101))
    assert limits(await chat(almost, max_tokens=1_000_000))["remaining-tokens"] == "0"


async def test_requests_at_once() -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    stack = Stack(engine, Quota(concurrent=2))
    running = [asyncio.create_task(chat(stack)) for _ in range(2)]
    await asyncio.sleep(0)
    answer = await chat(stack)
    assert answer.status == 429 and "2 requests at once" in answer.json["error"]["message"]
    assert answer.headers["retry-after"] == "1" and stack.rejected("quota_concurrent") == 1
    engine.gate.set()
    assert [(await task).status for task in running] == [200, 200]
    assert (await chat(stack)).status == 200


@pytest.mark.parametrize("ticks", range(12))
async def test_a_slot_comes_back_when_the_request_is_cancelled_anywhere(ticks: int) -> None:
    engine = Engine(counted=(100, 7))
    engine.gate = asyncio.Event()
    stack = Stack(engine, Quota(concurrent=1, tokens_per_minute=1000))
    task = asyncio.create_task(chat(stack))
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    engine.gate.set()
    answer = await chat(stack)
    assert answer.status == 200
    assert limits(answer)["remaining-tokens"] == ("743" if engine.reached == 2 else "850")  # 107 were generated


@pytest.mark.parametrize(
    ("error", "status"),
    [(ApiError(400, "x", "bad"), 400), (ApiError(429, "overloaded", "full"), 429), (RuntimeError("bug"), 500)],
)
async def test_failures_give_back_what_was_not_used(error: Exception, status: int) -> None:
    engine = Engine()
    stack = Stack(engine, Quota(requests_per_minute=10, tokens_per_minute=1000, concurrent=1))
    engine.error = error
    answer = await chat(stack)
    assert answer.status == status
    assert ("limit-tokens" in limits(answer)) == (status != 500)
    engine.error = None
    told = limits(await chat(stack))
    assert told["remaining-tokens"] == "850"
    # The client's mistakes count as requests, the server's own troubles do not.
    assert told["remaining-requests"] == ("8" if status == 400 else "9")


async def test_an_error_of_the_engine_in_another_shape_keeps_the_headers() -> None:
    answer = await chat(Stack(Engine(status=404), Quota(requests_per_minute=10)))
    assert answer.status == 404 and limits(answer)["remaining-requests"] == "9"


async def test_an_answer_that_the_engine_did_not_count_costs_its_prompt() -> None:
    stack = Stack(Engine(), Quota(tokens_per_minute=1000))
    await call(stack.app, "POST", "/v1/embeddings", {"input": "some text"})
    answer = await call(stack.app, "POST", "/v1/embeddings", {"input": "some text"})
    assert limits(answer)["remaining-tokens"] == "800"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b'{"messages": 7, "max_tokens": "many", "n": -1}'])
async def test_bad_bodies_go_on_to_the_engine(body: bytes) -> None:
    stack = Stack(engine := Engine(status=400), Quota(tokens_per_minute=1000))
    assert (await call(stack.app, "POST", CHAT, body)).status == 400 and engine.reached == 1
    assert limits(await chat(stack))["remaining-tokens"] == "850"


async def test_no_limits_no_headers_and_the_body_is_not_parsed() -> None:
    async def never(route: str, body: dict[str, Any]) -> int:
        raise AssertionError("counted for nobody")

    answer = await chat(Stack(Engine(), counter=never))
    assert answer.status == 200 and not limits(answer)
    assert (await chat(Stack(Engine(), Quota(requests_per_minute=5, concurrent=5), counter=never))).status == 200


async def test_without_a_tokenizer_characters_are_counted() -> None:
    stack = Stack(Engine(), Quota(tokens_per_minute=1000), counter=None)
    answer = await call(stack.app, "POST", "/v1/completions", {"prompt": "x" * 400, "max_tokens": 0})
    assert limits(answer)["remaining-tokens"] == "900"


async def test_routes_that_ask_no_engine() -> None:
    stack = Stack(Engine(), Quota(requests_per_minute=5, tokens_per_minute=1000))
    answer = await call(stack.app, "POST", "/tokenize", {"prompt": "a b c"})
    assert (limits(answer)["remaining-requests"], limits(answer)["remaining-tokens"]) == ("4", "1000")
    assert not limits(await call(stack.app, "POST", "/v1/responses/resp_1/cancel"))
    assert not limits(await call(stack.app, "GET", "/v1/models"))


async def test_a_limit_of_zero_is_closed() -> None:
    for quota in (Quota(requests_per_minute=0), Quota(tokens_per_minute=0), Quota(concurrent=0)):
        answer = await chat(Stack(engine := Engine(), quota))
        assert (answer.status, answer.json["error"]["code"], engine.reached) == (403, "quota_is_zero", 0)


async def test_a_store_that_cannot_be_reached() -> None:
    class Gone(MemoryLimiter):
        async def admit(self, plan: Plan, tokens: int) -> Grant | Refusal:
            raise StoreUnavailable

    stack = Stack(Engine(), Quota(requests_per_minute=1), limiter=Gone())
    answer = await chat(stack)
    assert (answer.status, answer.json["error"]["code"]) == (503, "quota_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert stack.rejected("quota_unavailable") == 1
