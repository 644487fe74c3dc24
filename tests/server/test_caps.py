"""A key's caps against real bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from tests.server.asgi import FakeEngine, call
from tests.server.layers import BEARER, keyring, stack, with_headers
from thriftree.server.body import Body
from thriftree.server.metrics import Metrics
from thriftree.server.principal import Caps

CHAT = "/v1/chat/completions"
ANSWER = b'{"usage":{"total_tokens":17}}'


async def ask(caps: Caps, body: Any, path: str = CHAT, **more: Any) -> tuple[Any, FakeEngine]:
    engine = FakeEngine([ANSWER])
    return await call(stack(engine, keyring(caps), **more), "POST", path, body, headers=BEARER), engine


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{ "model": "a",\n "x":1.50 }\n', b'{ "model": "a",\n "x":1.50 ,"max_completion_tokens":9}'),
        (b"{}", b'{"max_completion_tokens":9}'),
        (b'  {"max_completion_tokens": null}  ', b'  {"max_completion_tokens": null,"max_completion_tokens":9}'),
        (b'{"max_tokens": 3}', b'{"max_tokens": 3}'),
    ],
)
async def test_a_request_that_names_no_limit_gets_the_cap_and_keeps_its_bytes(body: bytes, expected: bytes) -> None:
    lengths: list[bytes] = []
    engine = FakeEngine([ANSWER])

    async def measuring(scope: Scope, receive: Receive, send: Send) -> None:
        lengths.extend(value for name, value in scope["headers"] if name == b"content-length")
        await engine(scope, receive, send)

    assert (await call(stack(measuring, keyring(Caps(max_tokens=9))), "POST", CHAT, body, BEARER)).status == 200
    assert engine.seen == [expected]
    assert lengths == [str(len(expected)).encode()]


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), _JSON, max_size=5),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"]),
    st.sampled_from([None, 2]),
    st.sampled_from(["", "\n", " \t\r\n "]),
)
async def test_amended_bodies_mean_the_same_and_one_thing_more(
    content: dict[str, Any], encoding: str, indent: int | None, end: str
) -> None:
    data = (json.dumps(content, indent=indent, ensure_ascii=False) + end).encode(encoding)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data}

    body = Body({"headers": []}, receive, 1 << 20, 5)  # type: ignore[arg-type]
    length = await body.amend({"max_tokens": 5, "priority": -1})
    sent = await body.read()
    assert json.loads(sent) == {**content, "max_tokens": 5, "priority": -1} == await body.parsed()
    assert len(sent) == length


@pytest.mark.parametrize(
    ("caps", "body", "status", "code", "param"),
    [
        (Caps(models=("a",)), {"model": "b"}, 403, "model_not_allowed", "model"),
        (Caps(models=("a",)), {}, 403, "model_not_allowed", "model"),
        (Caps(models=("a",)), b'{"model": "a", "model": "b"}', 403, "model_not_allowed", "model"),
        (Caps(models=("a",)), b"", 400, "invalid_json", None),
        (Caps(models=("a",)), b'["a"]', 400, "invalid_json", None),
        (Caps(max_tokens=9), b"[" * 100_000, 400, "invalid_json", None),
        (Caps(max_tokens=9), {"max_tokens": 10}, 403, "max_tokens_not_allowed", "max_tokens"),
        (Caps(max_tokens=9), b'{"max_tok\\u0065ns": 10}', 403, "max_tokens_not_allowed", "max_tokens"),
        (Caps(max_tokens=9), '{"max_tokens": 10}'.encode("utf-16"), 403, "max_tokens_not_allowed", "max_tokens"),
        (Caps(), {"priority": -1}, 403, "priority_not_allowed", "priority"),
        (Caps(), b'{"priorit\\u0079": -1}', 403, "priority_not_allowed", "priority"),
        (Caps(), b'{"\\u0070riority": -1}', 403, "priority_not_allowed", "priority"),
        (Caps(), '{"priority": -1}'.encode("utf-16-le"), 403, "priority_not_allowed", "priority"),
        (Caps(methods=("suffix",)), {"thrift": {"speculation": "auto"}}, 400, "thrift_forbidden", "thrift.speculation"),
    ],
)
async def test_refusals_name_the_field(caps: Caps, body: Any, status: int, code: str, param: str | None) -> None:
    metrics = Metrics()
    answer, engine = await ask(caps, body, metrics=metrics)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert engine.seen == []
    assert metrics.rejected.labels(code)._value.get() == (1 if status == 403 else 0)


async def test_the_priority_header_is_no_way_around() -> None:
    engine = FakeEngine([ANSWER])
    app = with_headers(stack(engine, keyring()), (b"x-vllm-priority", b"-3"))
    answer = await call(app, "POST", CHAT, {}, headers=BEARER)
    assert (answer.status, answer.json["error"]["param"], engine.seen) == (403, "x-vllm-priority", [])


async def test_a_method_that_the_key_may_use_takes_the_place_of_the_default() -> None:
    answer, engine = await ask(Caps(methods=("suffix",)), {"model": "a"})
    assert engine.contracts[0].thrift["speculation"]["method"] == "suffix"
    assert answer.json["usage"]["thrift"]["speculation"]["method"] == "suffix"


@pytest.mark.parametrize("path", ["/invocations", "/v1/audio/transcriptions"])
async def test_routes_whose_bodies_are_not_understood_are_closed_to_capped_keys(path: str) -> None:
    answer, engine = await ask(Caps(max_tokens=9), {"max_tokens": 5}, path, allow=(path,))
    assert (answer.status, answer.json["error"]["code"], engine.seen) == (403, "route_not_allowed", [])
    answer, engine = await ask(Caps(models=("a",)), {"model": "a"}, path, allow=(path,))
    assert answer.status == 200


async def test_a_cancel_needs_no_body() -> None:
    answer, _ = await ask(Caps(models=("a",), max_tokens=9, priority=3), None, "/v1/responses/resp_1/cancel")
    assert answer.status == 200


@pytest.mark.parametrize(
    ("caps", "body"),
    [(Caps(), b'{"messages": [{"content": "priority \\u00e9"}]}'), (Caps(methods=("suffix",)), b"{"), (Caps(), b"")],
)
async def test_bodies_are_not_parsed_without_need(caps: Caps, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def parsed(self: Body) -> Any:
        raise AssertionError("parsed")

    monkeypatch.setattr(Body, "parsed", parsed)
    answer, engine = await ask(caps, body)
    assert answer.status == 200 and engine.seen == [body]


async def test_bodies_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parses: list[int] = []
    stock = json.loads
    monkeypatch.setattr("thriftree.server.body.json.loads", lambda data: parses.append(1) or stock(data))
    body = b'{"model": "a", "max_tokens": 3, "priority": 7, "thrift": "off"}'
    _, engine = await ask(Caps(models=("a",), max_tokens=9, priority=5, methods=("suffix",)), body)
    assert engine.seen == [body] and parses == [1]


@pytest.mark.parametrize(
    ("caps", "ids"), [(Caps(models=("b", "c")), ["b"]), (Caps(models=("x",)), []), (Caps(), ["a", "b"])]
)
async def test_the_list_of_models_shows_what_may_be_used(caps: Caps, ids: list[str]) -> None:
    listed = b'{"object":"list","data":[{"id":"a","permission":[]},{"id":"b","permission":[]}],"more":"\xc3\xa9"}'
    app = stack(FakeEngine([listed[:30], listed[30:]]), keyring(caps))
    answer = await call(app, "GET", "/v1/models", headers=BEARER)
    assert [model["id"] for model in answer.json["data"]] == ids
    assert answer.json["more"] == "é" and answer.headers["content-length"] == str(len(answer.body))


async def test_errors_of_the_list_pass() -> None:
    app = stack(FakeEngine([b"broken"], status=502), keyring(Caps(models=("b",))))
    assert (await call(app, "GET", "/v1/models", headers=BEARER)).status == 502


async def test_a_cap_on_caches_cannot_be_held_in_front_of_another_engine() -> None:
    answer, engine = await ask(Caps(max_kv_budget=512), {"max_tokens": 3}, remote=True)
    assert (answer.status, answer.json["error"]["code"], engine.seen) == (403, "route_not_allowed", [])
    assert "max_kv_budget" in answer.json["error"]["message"]
    assert (await ask(Caps(max_kv_budget=512), {"input": "a"}, "/v1/embeddings", remote=True))[0].status == 200
