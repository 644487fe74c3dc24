"""The layers in front of a fake engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.asgi import FakeEngine, call
from tests.server.conftest import Gateway
from thriftree.server.errors import ApiError

CHAT = "/v1/chat/completions"
ANSWER = (
    b'{"id":"x","choices":[{"message":{"content":"say \\"usage\\":{ twice"}}],"usage":{"total_tokens":17},"m":null}'
)
CONTENT = b'data: {"choices":[{"delta":{"content":"\\"usage\\":{"}}],"usage":null}\n\n'
LAST = b'data: {"choices":[],"usage":{"total_tokens":17}}\n\n'
DONE = b"data: [DONE]\n\n"
THRIFT = {
    "exact": True,
    "steps": 4,
    "tokens_per_step": 2.5,
    "speculation": {"method": "auto", "drafted": 24, "accepted": 6},
    "kv": {"method": None, "tokens_seen": 7, "tokens_kept": 7},
    "vision": {"method": None, "tokens_seen": 0, "tokens_kept": 0},
}


async def test_body_passes_untouched_and_usage_is_amended(gateway: Gateway) -> None:
    engine = FakeEngine([ANSWER[:30], ANSWER[30:]])
    app, _ = gateway(engine)
    body = b'{ "thrift": {"speculation": {"method": "auto", "max_nodes": 8}}, "messages": [] }'
    answer = await call(app, "POST", CHAT, body)
    assert engine.seen == [body]
    assert answer.status == 200 and answer.headers["content-length"] == str(len(answer.body))
    assert answer.json["usage"] == {"total_tokens": 17, "thrift": THRIFT}
    assert engine.contracts[0].thrift == {
        "speculation": {"method": "auto", "max_nodes": 8},
        "kv": "off",
        "vision": "off",
    }
    assert engine.contracts[0].tenant == "default"


async def test_streams_pass_as_bytes_but_for_usage(gateway: Gateway) -> None:
    app, _ = gateway(FakeEngine([CONTENT, CONTENT, LAST, DONE], "text/event-stream; charset=utf-8"))
    answer = await call(app, "POST", CHAT, {})
    assert answer.chunks[:2] == [CONTENT, CONTENT]
    assert json.loads(answer.chunks[2][6:])["usage"]["thrift"] == THRIFT
    assert answer.chunks[3] == DONE


@pytest.mark.parametrize("size", [1, 2, 7, 30, 64])
async def test_events_cut_anywhere(gateway: Gateway, size: int) -> None:
    whole = CONTENT + LAST + DONE
    app, _ = gateway(FakeEngine([whole[i : i + size] for i in range(0, len(whole), size)], "text/event-stream"))
    answer = await call(app, "POST", CHAT, {})
    first, last, done, _ = answer.body.split(b"\n\n")
    assert (first + b"\n\n", done + b"\n\n") == (CONTENT, DONE)
    assert json.loads(last[6:])["usage"]["thrift"] == THRIFT


async def test_responses_stream(gateway: Gateway) -> None:
    event = (
        b'event: response.completed\ndata: {"response":{"tools":[{"usage":{"a":1}}],"usage":{"total_tokens":1}}}\n\n'
    )
    app, _ = gateway(FakeEngine([event], "text/event-stream"))
    answer = await call(app, "POST", "/v1/responses", {})
    response = json.loads(answer.body.split(b"data: ")[1])["response"]
    assert response["usage"]["thrift"] == THRIFT and response["tools"] == [{"usage": {"a": 1}}]


async def test_off_is_reported_as_off(gateway: Gateway) -> None:
    engine = FakeEngine([ANSWER])
    app, _ = gateway(engine)
    answer = await call(app, "POST", CHAT, {"thrift": "off"})
    assert answer.json["usage"]["thrift"]["speculation"]["method"] is None
    assert engine.contracts[0].thrift == {"speculation": "off", "kv": "off", "vision": "off"}


async def test_bad_thrift_never_reaches_the_engine(gateway: Gateway) -> None:
    engine = FakeEngine([ANSWER])
    app, _ = gateway(engine)
    answer = await call(app, "POST", CHAT, {"thrift": {"speculation": {"max_nodes": 99}}})
    error = answer.json["error"]
    assert answer.status == 400 and engine.seen == []
    assert (error["param"], error["code"]) == ("thrift.speculation.max_nodes", "thrift_forbidden")
    assert error["type"] == "invalid_request_error" and "cap of 16" in error["message"]


async def test_the_word_in_a_message_is_no_contract(gateway: Gateway) -> None:
    engine = FakeEngine([ANSWER])
    app, _ = gateway(engine)
    await call(app, "POST", CHAT, {"messages": [{"content": '"thrift": "nonsense"'}], "x": {"thrift": 3}})
    assert engine.contracts[0].thrift["speculation"]["method"] == "auto"


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"thrift"', b'["thrift"]', b'"thrift"', b'{"thrift": null}', b"[" * 9999]
)
async def test_bodies_that_are_vllms_business(gateway: Gateway, body: bytes) -> None:
    engine = FakeEngine([ANSWER])
    app, _ = gateway(engine)
    assert (await call(app, "POST", CHAT, body)).status == 200
    assert engine.seen == [body]


async def test_too_large_is_413_and_not_read(gateway: Gateway) -> None:
    engine = FakeEngine([ANSWER])
    app, _ = gateway(engine, limits={"max_body_bytes": 1024})
    answer = await call(app, "POST", CHAT, b"x" * 1025)
    assert (answer.status, answer.json["error"]["code"], engine.seen) == (413, "body_too_large", [])
    lying = await call(app, "POST", CHAT, b"x" * 1025, headers={"content-length": "5"})
    assert lying.status == 413


async def test_disconnects_are_heard_below_and_counted(gateway: Gateway) -> None:
    engine = FakeEngine([], listens=True)
    app, _ = gateway(engine)
    await call(app, "POST", CHAT, {}, more=[{"type": "http.disconnect"}])
    assert engine.disconnects == 1
    assert 'route="/v1/chat/completions",status="499"' in (await call(app, "GET", "/metrics")).body.decode()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "route_not_found"),
        ("POST", "/tokenize", 404, "route_not_found"),
        ("POST", "/invocations", 404, "route_not_found"),
        ("GET", "/v1/responses/a/b", 404, "route_not_found"),
        ("GET", "/openapi.json", 404, "route_not_found"),
    ],
)
async def test_closed_by_default(gateway: Gateway, method: str, path: str, status: int, code: str) -> None:
    engine = FakeEngine([b"open"])
    app, _ = gateway(engine)
    answer = await call(app, method, path)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


async def test_routes_can_be_opened(gateway: Gateway) -> None:
    app, _ = gateway(FakeEngine([b"open"]), routes={"allow": ["/tokenize"]})
    assert (await call(app, "POST", "/tokenize")).body == b"open"
    assert (await call(app, "GET", "/v1/responses/resp_1")).body == b"open"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'{"detail":"Not Found"}', (404, "Not Found", "not_found")),
        (401, b'{"error":"Unauthorized"}', (401, "Unauthorized", "unauthorized")),
        (422, b'{"detail":[{"msg":"bad"}]}', (400, '[{"msg": "bad"}]', "bad_request")),
        (500, b"Internal Server Error", (500, "Internal Server Error", "internal_server_error")),
        (503, b"", (503, "Service Unavailable", "service_unavailable")),
    ],
)
async def test_one_error_shape(gateway: Gateway, status: int, body: bytes, expected: tuple[Any, ...]) -> None:
    app, _ = gateway(FakeEngine([body], status=status))
    answer = await call(app, "POST", CHAT, {})
    assert (answer.status, answer.json["error"]["message"], answer.json["error"]["code"]) == expected


async def test_vllms_errors_pass_as_they_are(gateway: Gateway) -> None:
    body = b'{"error":{"message":"no such model","type":"NotFoundError","param":"model","code":404}}'
    app, _ = gateway(FakeEngine([body], status=404))
    assert (await call(app, "POST", CHAT, {})).body == body


async def test_a_bug_is_a_500_in_shape(gateway: Gateway) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret")

    app, _ = gateway(broken)
    answer = await call(app, "POST", CHAT, {}, headers={"x-request-id": "abc"})
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body and "abc" in answer.json["error"]["message"]


async def test_a_stream_that_fails_ends_with_an_error_event(gateway: Gateway) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": CONTENT, "more_body": True})
        raise ApiError(408, "deadline", "too late")

    app, _ = gateway(broken)
    answer = await call(app, "POST", CHAT, {})
    assert answer.chunks[0] == CONTENT
    assert json.loads(answer.chunks[-1][6:])["error"]["code"] == "deadline"


async def test_before_and_after_ready(gateway: Gateway) -> None:
    app, state = gateway(None)
    assert (await call(app, "GET", "/health")).status == 200
    for path in ("/ready", "/v1/models"):
        answer = await call(app, "GET", path)
        assert (answer.status, answer.json["error"]["code"]) == (503, "starting")
        assert "retry-after" in answer.headers
    text = (await call(app, "GET", "/metrics")).body.decode()  # the probe is no refused request
    assert 'thriftree_rejected_total{reason="starting"} 1.0' in text and "thriftree_ready 0.0" in text
    state.engine_app, state.phase = FakeEngine([b"{}"]), "ready"
    assert (await call(app, "GET", "/ready")).json == {"status": "ready"}
    assert b"thriftree_ready 1.0" in (await call(app, "GET", "/metrics")).body
    state.phase = "draining"
    assert (await call(app, "GET", "/ready")).json["error"]["code"] == "draining"


async def test_request_ids(gateway: Gateway) -> None:
    app, _ = gateway(FakeEngine([ANSWER]))
    assert (await call(app, "GET", "/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await call(app, "GET", "/health", headers={"x-request-id": "bad id\t"})).headers["x-request-id"]
    assert len(made) == 32


async def test_metrics(gateway: Gateway) -> None:
    app, _ = gateway(FakeEngine([ANSWER]))
    await call(app, "POST", CHAT, {})
    text = (await call(app, "GET", "/metrics")).body.decode()
    for line in (
        'thriftree_requests_total{route="/v1/chat/completions",status="200",tenant="default"} 1.0',
        'thriftree_draft_tokens_total{method="auto"} 24.0',
        'thriftree_accepted_tokens_total{method="auto"} 6.0',
        "thriftree_tokens_per_step_sum 2.5",
        "thriftree_tree_nodes 6.0",
        'thriftree_tenant_tokens_total{kind="completion",tenant="default"} 10.0',
    ):
        assert line in text


async def test_methods_route(gateway: Gateway) -> None:
    app, _ = gateway(None, speculation=False)
    listed = (await call(app, "GET", "/v1/thrift/methods")).json
    assert listed["object"] == "list"
    names = {row["name"] for row in listed["methods"]}
    assert {"auto", "token_recycling", "trie_lookahead", "suffix", "snapkv", "razor_observed"} <= names
    for row in listed["methods"]:
        assert {"name", "family", "exact", "available", "reason", "default", "parameters", "paper"} <= set(row)
        assert row["available"] is False and "--thrift off" in row["reason"]
