"""Browsers of other origins, and proxies that serve us under a path."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from tests.server.asgi import FakeEngine, call
from thriftree.server.app import build
from thriftree.server.edge import Edge
from thriftree.server.remote.args import parse
from thriftree.server.settings import Settings, load
from thriftree.server.state import GatewayState

CHAT = "/v1/chat/completions"
ORIGIN = "https://app.example"
KEYED: dict[str, Any] = {"auth": {"keys": ["a-key-of-sixteen-or-more"]}}
ANSWER = b'{"usage":{"total_tokens":17}}'


def gateway(*flags: str, **settings: Any) -> tuple[Any, FakeEngine]:
    """The gateway as `serve` builds it from such flags, in front of a fake engine."""
    ours, words = load(["--engine", "http://127.0.0.1:1", *flags])
    state, engine = GatewayState(), FakeEngine([ANSWER])
    state.engine_app, state.phase = engine, "ready"
    return build(Settings(**settings), state, edge=Edge.of(parse(ours, words))), engine


def preflight(origin: str = ORIGIN) -> dict[str, str]:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return {"origin": origin, **asked}


def test_the_flags_are_those_of_vllm() -> None:
    given = Namespace(
        root_path="/llm/",
        allowed_origins=[ORIGIN],
        allowed_methods=["GET"],
        allowed_headers=["x"],
        allow_credentials=True,
    )
    assert Edge.of(given) == Edge("/llm", (ORIGIN,), ("GET",), ("x",), True)
    given.root_path, given.allowed_origins = None, []
    assert Edge.of(given).root_path == "" and Edge.of(given).origins == ()


@pytest.mark.parametrize(("origins", "shown"), [('["*"]', "*"), (f'["{ORIGIN}"]', ORIGIN)])
async def test_preflight_needs_no_key(origins: str, shown: str) -> None:
    app, engine = gateway("--allowed-origins", origins, **KEYED)
    answer = await call(app, "OPTIONS", CHAT, headers=preflight())
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, shown)
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["x-request-id"] and engine.seen == []


async def test_a_browser_can_read_errors() -> None:
    app, _ = gateway("--allowed-origins", f'["{ORIGIN}"]', **KEYED)
    wrong = await call(app, "POST", CHAT, {}, {"origin": ORIGIN})
    unknown = await call(app, "POST", "/nope", {}, {"origin": ORIGIN})
    right = await call(app, "POST", CHAT, {}, {"origin": ORIGIN, "authorization": "Bearer a-key-of-sixteen-or-more"})
    assert [answer.status for answer in (wrong, unknown, right)] == [401, 404, 200]
    for answer in (wrong, unknown, right):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert {"retry-after", "x-request-id"} <= set(answer.headers["access-control-expose-headers"].split(", "))


async def test_other_origins_are_told_nothing() -> None:
    app, _ = gateway("--allowed-origins", f'["{ORIGIN}"]', **KEYED)
    refused = await call(app, "OPTIONS", CHAT, headers=preflight("https://evil.example"))
    assert refused.status == 400 and refused.json["error"]["code"] == "cors_refused"
    assert refused.headers["content-length"] == str(len(refused.body))
    plain = await call(app, "POST", CHAT, {}, {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in plain.headers | refused.headers


async def test_without_the_flag_nothing_is_added() -> None:
    app, _ = gateway()
    answer = await call(app, "POST", CHAT, {}, {"origin": ORIGIN})
    assert answer.status == 200 and not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("root", ["/llm", "llm/", "/a/b"])
async def test_under_a_path(root: str) -> None:
    """A proxy may take the path off, or leave it on."""
    app, engine = gateway("--root-path", root)
    inside = "/" + root.strip("/")
    for prefix in ("", inside):
        assert (await call(app, "GET", f"{prefix}/health")).json["status"] == "ok"
        assert (await call(app, "GET", f"{prefix}/v1/thrift/methods")).json["object"] == "list"
        assert "thrift" in (await call(app, "POST", f"{prefix}{CHAT}", {})).json["usage"]
        closed = await call(app, "POST", f"{prefix}/tokenize", {})
        assert (closed.status, closed.json["error"]["code"]) == (404, "route_not_found")
    for page in ("/", inside, inside + "/"):
        assert f'<base href="{inside}/">' in (await call(app, "GET", page)).body.decode()
    assert (await call(app, "GET", f"{inside}x/health")).status == 404
    assert (await call(app, "GET", f"{inside}{inside}/health")).status == 404
    assert len(engine.seen) == 2


async def test_without_the_flag_there_is_no_path() -> None:
    assert (await call(gateway()[0], "GET", "/llm/health")).status == 404
