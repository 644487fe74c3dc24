from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.server.flow import Client
from tests.server.stack import Stack
from tests.server.test_admission_layer import until
from thriftree.benchmarks.gateway_engine import TokenClock
from thriftree.server.admission.gate import Gate
from thriftree.server.deadlines import Course, total_seconds
from thriftree.server.errors import ApiError
from thriftree.server.sections import Deadlines

LONG = {"max_tokens": 1000, "messages": []}  # ten seconds of the engines below: what ends before was ended
STREAM = {**LONG, "stream": True}


def limits(**some: float) -> Deadlines:
    return Deadlines(**{"queue": 0, "first_token": 0, "between_tokens": 0, "total": 0, **some})


def stack(engine: Any, **some: float) -> Stack:
    return Stack(engine, Gate(10, 10**6, 4), limits(**some))


async def rest(made: Stack, engine: TokenClock) -> None:
    await until(lambda: engine.running == 0 == engine.waiting)
    assert made.gate.running == 0 == made.gate.waiting


async def test_total_before_the_first_byte() -> None:
    engine = TokenClock(rate=100)
    made = stack(engine, total=0.1)
    client = await Client(made, LONG).task
    assert (client.status, client.error["code"]) == (408, "deadline_total") and 0.1 <= client.seconds < 5
    assert client.error["message"] == "the request was not finished within 0.1 s"
    await rest(made, engine)
    assert engine.aborted == 1
    assert made.metric('thriftree_deadline_exceeded_total{deadline="total"}') == 1
    assert made.metric('thriftree_requests_total{route="/v1/chat/completions",status="408",tenant="default"}') == 1


async def test_total_in_a_stream_is_an_error_event() -> None:
    engine = TokenClock(rate=100)
    made = stack(engine, total=0.4)
    client = await Client(made, STREAM).task
    assert client.status == 200 and 1 < len(client.chunks) < 900 and client.whole
    assert client.chunks[-1].startswith(b'data: {"error"') and client.error["code"] == "deadline_total"
    await rest(made, engine)
    assert engine.aborted == 1


async def test_first_token_of_a_stream_is_a_408() -> None:
    engine = TokenClock(rate=100, first=5)
    made = stack(engine, first_token=0.1, between_tokens=9)
    client = await Client(made, STREAM).task
    assert (client.status, client.error["code"]) == (408, "deadline_first_token") and client.seconds < 4
    await rest(made, engine)


async def test_first_token_does_not_count_for_whole_answers() -> None:
    made = stack(TokenClock(rate=100), first_token=0.05, between_tokens=0.02)
    client = await Client(made, {**LONG, "max_tokens": 20}).task
    assert client.status == 200 and client.seconds >= 0.2
    client = await Client(made, {**LONG, "max_tokens": 20, "note": '"stream": true'}).task
    assert client.status == 200


async def test_first_token_counts_where_nothing_has_come_at_all() -> None:
    """An engine that has not even begun to answer: whether it is a stream is in the body."""

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    made = stack(silent, first_token=0.05)
    client = await Client(made, STREAM).task
    assert (client.status, client.error["code"]) == (408, "deadline_first_token")


@pytest.mark.parametrize("first_token", [0, 300])
async def test_between_tokens(first_token: float) -> None:
    async def stalls(scope: Scope, receive: Receive, send: Send) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await asyncio.sleep(0.3)
            yield b"data: 2\n\n"
            await asyncio.sleep(0.3)
            yield b"data: 3\n\n"
            await asyncio.sleep(9)

        await receive()
        await StreamingResponse(chunks(), media_type="text/event-stream")(scope, receive, send)

    client = await Client(stack(stalls, between_tokens=0.5, first_token=first_token), STREAM).task
    assert client.chunks[:3] == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert client.error["code"] == "deadline_between_tokens" and 1.1 <= client.seconds < 8


async def test_a_keep_alive_comment_is_no_token() -> None:
    async def comments(scope: Scope, receive: Receive, send: Send) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b": keep-alive\n\n"
                await asyncio.sleep(0.02)

        await receive()
        await StreamingResponse(chunks(), media_type="text/event-stream")(scope, receive, send)

    client = await Client(stack(comments, first_token=0.1, between_tokens=5), STREAM).task
    assert client.status == 200 and client.error["code"] == "deadline_first_token" and client.seconds < 4


async def test_steady_streams_pass_untouched() -> None:
    made = stack(TokenClock(rate=100), between_tokens=0.6, first_token=2, total=20)
    client = await Client(made, {**STREAM, "max_tokens": 80}).task
    assert client.status == 200 and client.chunks[-1] == b"data: [DONE]\n\n" and client.seconds >= 0.75


async def test_a_client_that_does_not_read_is_ended() -> None:
    engine = TokenClock(rate=100)
    made = stack(engine, between_tokens=0.1)
    client = Client(made, STREAM)
    await until(lambda: client.chunks)
    client.stalled = asyncio.Event()
    await rest(made, engine)  # the place is free although the error cannot be delivered yet
    assert engine.aborted == 1 and not client.task.done()
    client.stalled.set()
    assert (await client.task).error["code"] == "deadline_between_tokens"


@pytest.mark.parametrize("begun", [False, True])
async def test_what_an_app_says_as_it_leaves_is_not_heard(begun: bool) -> None:
    """vLLM's handlers return None when their client has left, which the framework answers with 200 and `null`."""

    async def null(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        if begun:
            await send(start)
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        if not begun:
            await send({**start, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"null"})

    client = await Client(stack(null, total=0.05), STREAM).task
    assert client.status == (200 if begun else 408) and b"null" not in client.body.replace(b'"param": null', b"")
    assert client.error["code"] == "deadline_total"


async def test_an_app_that_does_not_listen_is_cancelled() -> None:
    ended: list[str] = []

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ended.append("cancelled")

    client = await Client(stack(deaf, total=0.05), LONG).task
    assert (client.status, ended) == (408, ["cancelled"]) and client.seconds < 5


@pytest.mark.parametrize("body", [LONG, STREAM])
async def test_all_can_be_ended_at_once(body: Any) -> None:
    """For a drain that has waited long enough."""
    engine = TokenClock(rate=100)
    made = stack(engine)
    clients = [Client(made, body) for _ in range(3)]
    await until(lambda: engine.running == 3 and (body is LONG or all(client.chunks for client in clients)))
    assert made.deadline.end_all(ApiError(503, "draining", "the server is stopping")) == 3
    await asyncio.gather(*(client.task for client in clients))
    assert {client.status for client in clients} == {200 if body is STREAM else 503}
    assert {client.error["code"] for client in clients} == {"draining"} and all(client.whole for client in clients)
    await rest(made, engine)
    assert engine.aborted == 3 and made.deadline.end_all(ApiError(503, "draining", "")) == 0
    assert "deadline_exceeded_total{" not in made.metrics.render().decode()


async def test_cancelled_from_outside_stays_cancelled() -> None:
    engine = TokenClock(rate=100)
    made = stack(engine, total=5)
    client = Client(made, LONG)
    await until(lambda: engine.running == 1)
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    await rest(made, engine)


async def test_a_client_that_leaves_is_heard_below() -> None:
    engine = TokenClock(rate=100)
    made = stack(engine, total=5, first_token=3, between_tokens=2)
    for body in (LONG, STREAM):
        seconds = []
        for _ in range(3):
            client = Client(made, body)
            await until(lambda: engine.running == 1)
            client.leave()
            left = asyncio.get_running_loop().time()
            await until(lambda: engine.running == 0)
            seconds.append(asyncio.get_running_loop().time() - left)
            await client.task
        assert min(seconds) < 0.1
    assert engine.aborted == 6
    assert made.metric('thriftree_requests_total{route="/v1/chat/completions",status="499",tenant="default"}') == 6


async def test_the_header_shortens_the_total_and_cannot_lengthen_it() -> None:
    engine = TokenClock(rate=100)
    client = await Client(stack(engine), LONG, headers={"x-thriftree-timeout": "0.1"}).task
    assert (client.status, client.error["code"]) == (408, "deadline_total")
    client = await Client(stack(engine, total=0.1), LONG, headers={"x-thriftree-timeout": "60"}).task
    assert client.status == 408 and client.seconds < 5


@pytest.mark.parametrize("value", ["", "0", "0.0", "-1", "soon", "nan", "inf", "1e3", "1_0", "1,5", "9" * 400, "1 2"])
async def test_a_bad_header_is_a_400_that_names_it(value: str) -> None:
    client = await Client(stack(TokenClock()), LONG, headers={"x-thriftree-timeout": value}).task
    assert (client.status, client.error["param"]) == (400, "x-thriftree-timeout")


@given(st.binary(max_size=12))
def test_any_header_is_a_number_or_a_400(value: bytes) -> None:
    try:
        seconds = total_seconds(limits(total=50), [(b"x-thriftree-timeout", value)])
    except ApiError as error:
        assert error.status == 400
    else:
        assert 0 < seconds <= 50 and float(value) > 0


TIMES = st.one_of(st.just(inf), st.floats(0.001, 1000))


@given(TIMES, TIMES, TIMES, st.one_of(st.none(), st.floats(0, 1000)), st.booleans())
def test_the_next_deadline_is_the_earliest_that_applies(
    total: float, first: float, between: float, last: float | None, whole: bool
) -> None:
    course = Course(10, total, first, between, None if last is None else 10 + last, whole)
    when, deadline = course.next()
    applies = {"total": 10 + total}
    if not whole:
        applies |= {"first_token": 10 + first} if last is None else {"between_tokens": 10 + last + between}
    assert when == min(applies.values()) == applies[deadline]
