"""Who gets in, and what a refusal says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from tests.server.asgi import FakeEngine, call
from tests.server.layers import BEARER, KEY, keyring, stack, with_headers
from thriftree.server.keys import token
from thriftree.server.keys.keyring import Keyring
from thriftree.server.keys.store import Store
from thriftree.server.metrics import Metrics
from thriftree.server.middleware import auth
from thriftree.server.principal import Caps, Quota
from thriftree.server.scope import info

CHAT = "/v1/chat/completions"
GOOD = KEY.encode()


class Listener:
    """Notes what reaches the app."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize(
    "headers",
    [BEARER, {"authorization": f"bearer  {KEY} "}, {"x-api-key": KEY}, {**BEARER, "x-api-key": KEY}],
)
async def test_a_key_opens_and_names_its_holder(headers: dict[str, str]) -> None:
    app = Listener()
    assert (await call(stack(app, keyring()), "GET", "/v1/models", headers=headers)).status == 200
    who = info(app.scopes[0]).principal
    assert (who.tenant, who.key_id) == ("acme", "ci")
    names = {name for name, _ in app.scopes[0]["headers"]}
    assert not names & {b"authorization", b"x-api-key"}  # or vLLM's own check would refuse a key of ours


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer sk-wrong")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"")],
        [(b"authorization", GOOD)],
        [(b"authorization", b"Basic " + GOOD)],
        [(b"authorization", b"Bearer " + GOOD + b"\x00")],
        [(b"authorization", b"Bearer " + GOOD[:5] + b"\x00" + GOOD[5:])],
        [(b"authorization", b"Bearer " + GOOD + b"\xff\xfe")],
        [(b"authorization", "Bearer schlüssel".encode())],
        [(b"authorization", b"Bearer " + GOOD), (b"authorization", b"Bearer " + GOOD)],
        [(b"authorization", b"Bearer " + GOOD), (b"authorization", b"Bearer sk-wrong")],
        [(b"authorization", b"Bearer " + GOOD), (b"x-api-key", b"sk-wrong")],
        [(b"x-api-key", GOOD), (b"x-api-key", GOOD)],
        [(b"x-api-key", b"")],
        [(b"authorization", b"Bearer " + GOOD.upper())],
        [(b"authorization", b"Bearer tt-000000000000-" + b"A" * 43)],
    ],
)
async def test_everything_else_is_a_401(headers: list[tuple[bytes, bytes]]) -> None:
    metrics, engine = Metrics(), FakeEngine([b"{}"])
    answer = await call(with_headers(stack(engine, keyring(), metrics), *headers), "POST", CHAT, {"model": "m"})
    error = answer.json["error"]
    assert (answer.status, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert engine.seen == []
    assert metrics.rejected.labels("unauthorized")._value.get() == 1
    for _, value in headers:
        shown = value.removeprefix(b"Bearer").strip()
        assert not shown or shown not in answer.body


async def test_a_megabyte_is_refused_at_once() -> None:
    app = with_headers(stack(Listener(), keyring()), (b"authorization", b"Bearer " + b"k" * (8 << 20)))
    begun = time.process_time()
    for _ in range(20):
        assert (await call(app, "GET", "/v1/models")).status == 401
    assert (time.process_time() - begun) / 20 < 0.005


@given(st.binary(max_size=600))
async def test_no_bytes_do_harm(value: bytes) -> None:
    app = stack(Listener(), keyring())
    for name, prefix in ((b"authorization", b""), (b"authorization", b"Bearer "), (b"x-api-key", b"")):
        assert (await call(with_headers(app, (name, prefix + value)), "GET", "/v1/models")).status == 401


@pytest.mark.parametrize(
    ("path", "open_routes", "status"),
    [
        ("/health", (), 200),
        ("/ready", (), 200),
        ("/metrics", (), 401),
        ("/metrics", ("/metrics",), 200),
        ("/version", (), 401),
        ("/v1/thrift/methods", (), 401),
        ("/tokenize", (), 401),  # vLLM leaves it open
        ("/nowhere", (), 404),
    ],
)
async def test_what_needs_no_key(path: str, open_routes: tuple[str, ...], status: int) -> None:
    app = stack(Listener(), keyring(), open_routes=open_routes, allow=("/tokenize",))
    assert (await call(app, "GET", path)).status == status


async def test_open_routes_still_know_who_asks() -> None:
    app = Listener()
    await call(stack(app, keyring(), open_routes=("/metrics",)), "GET", "/metrics", headers=BEARER)
    assert info(app.scopes[0]).tenant == "acme"


async def test_without_keys_everybody_is_anyone_and_headers_pass() -> None:
    app = Listener()
    assert (await call(stack(app, None), "GET", "/v1/models", headers=BEARER)).status == 200
    assert info(app.scopes[0]).principal.key_id is None
    assert (b"authorization", BEARER["authorization"].encode()) in app.scopes[0]["headers"]


async def test_a_browser_may_ask_what_it_may_ask() -> None:
    assert (await call(stack(Listener(), keyring()), "OPTIONS", CHAT)).status == 200


@pytest.mark.parametrize(
    ("headers", "caps", "passes"),
    [([], Caps(), False), ([(b"x-api-key", GOOD)], Caps(), True), ([(b"x-api-key", GOOD)], Caps(max_tokens=1), False)],
)
async def test_web_sockets(headers: list[tuple[bytes, bytes]], caps: Caps, passes: bool) -> None:
    sent: list[Message] = []
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers}

    async def accept(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await stack(accept, keyring(caps), allow=("/v1/realtime",))(scope, receive, send)
    assert sent[0]["type"] == ("websocket.accept" if passes else "websocket.close")


async def test_last_use_reaches_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(auth, "_SAVE_SECONDS", 0.02)
    store = Store(tmp_path / "keys.db")
    key, identity = token.mint()
    store.add(identity, token.digest(key.encode()), "acme", "", Caps(), Quota())
    ring = Keyring(tmp_path / "keys.db")
    before = time.time()
    await call(stack(Listener(), ring), "GET", "/v1/models", headers={"x-api-key": key})
    for _ in range(100):
        await asyncio.sleep(0.02)
        if (used := store.key_rows()[0].last_used) is not None:
            break
    assert used is not None and before <= used <= time.time()
    ring.close()
    store.close()
