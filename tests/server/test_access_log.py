"""One line per request, with what matters and nothing that is private."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.server.asgi import FakeEngine, call
from tests.server.layers import KEY, keyring
from thriftree.server.errors import StartError
from thriftree.server.log_lines import LogLines
from thriftree.server.methods import capabilities
from thriftree.server.metrics import Metrics
from thriftree.server.middleware.access_log import AccessLog
from thriftree.server.middleware.auth import Auth
from thriftree.server.middleware.body_limit import BodyLimit
from thriftree.server.middleware.contract import Contract
from thriftree.server.middleware.errors import OneErrorShape
from thriftree.server.middleware.metrics import CountRequests
from thriftree.server.middleware.request_id import RequestId
from thriftree.server.middleware.routes import ClosedRoutes

CHAT = "/v1/chat/completions"
EVENT = b"data: {}\n\n"


def stack(engine: ASGIApp, log: Path) -> ASGIApp:
    metrics = Metrics()
    app: ASGIApp = Auth(Contract(engine, lambda: capabilities(True, "auto", 16), metrics), metrics, keyring())
    app = OneErrorShape(ClosedRoutes(BodyLimit(app, metrics, 1 << 20, 5)))
    return RequestId(AccessLog(CountRequests(app, metrics), LogLines(str(log))))


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def test_the_line_of_a_request(tmp_path: Path) -> None:
    app, log = stack(FakeEngine([EVENT, EVENT], "text/event-stream"), tmp_path / "a.log"), tmp_path / "a.log"
    await call(app, "POST", CHAT, {"messages": []}, {"x-api-key": KEY, "x-request-id": "req-1"})
    (line,) = lines(log)
    seconds, first = line.pop("seconds"), line.pop("first_byte_seconds")
    assert 0 < first <= seconds < 5
    assert abs(time.time() - _seconds(line.pop("time"))) < 5
    assert line == {
        "event": "request",
        "request_id": "req-1",
        "client": "test",
        "method": "POST",
        "route": CHAT,
        "tenant": "acme",
        "key_id": "ci",
        "prompt_tokens": 7,
        "completion_tokens": 10,
        "steps": 4,
        "speculation": "auto",
        "status": 200,
        "left": False,
        "bytes": 2 * len(EVENT),
    }


def _seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp).timestamp()


async def test_no_prompt_no_key_no_query_no_path_of_a_client(tmp_path: Path) -> None:
    app, log = stack(FakeEngine([b'{"answer":"private"}']), tmp_path / "a.log"), tmp_path / "a.log"

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "query_string": b"q=private"}, receive, send)

    headers = {"x-api-key": KEY, "user-agent": "private"}
    await call(asked, "POST", CHAT, {"messages": "private", "user": "private"}, headers)
    await call(asked, "GET", "/v1/responses/private", headers=headers)
    await call(asked, "POST", "/private", {"prompt": "private"}, headers)
    await call(asked, "POST", CHAT, {}, {"authorization": "Bearer private"})
    text = log.read_text()
    assert "private" not in text and KEY not in text
    assert [(line["status"], line["route"]) for line in lines(log)] == [
        (200, CHAT),
        (200, "/v1/responses/{id}"),
        (404, "other"),
        (401, CHAT),
    ]


async def test_a_client_that_left(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    app = stack(FakeEngine([], listens=True), log)
    await call(app, "POST", CHAT, {}, {"x-api-key": KEY}, more=[{"type": "http.disconnect"}])
    (line,) = lines(log)
    assert (line["status"], line["left"], line["first_byte_seconds"]) == (499, True, None)


async def test_bugs_are_logged_as_500(tmp_path: Path) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    log = tmp_path / "a.log"
    await call(stack(broken, log), "POST", CHAT, {}, {"x-api-key": KEY})
    with pytest.raises(ValueError):
        await call(RequestId(AccessLog(broken, LogLines(str(log)))), "GET", "/health")
    assert [line["status"] for line in lines(log)] == [500, 500]


def test_a_moved_file_is_opened_anew(tmp_path: Path) -> None:
    now, file = [0.0], tmp_path / "a.log"
    log = LogLines(str(file), clock=lambda: now[0])
    log.write(b"one")
    os.rename(file, tmp_path / "a.log.1")
    now[0] += 1
    log.write(b"two")
    assert (tmp_path / "a.log.1").read_bytes() == b"one\n" and file.read_bytes() == b"two\n"
    file.unlink()
    now[0] += 1
    log.write(b"three")
    assert file.read_bytes() == b"three\n"
    log.close()


def test_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"access log .*No such file"):
        LogLines(str(tmp_path / "none" / "a.log"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_a_full_disk_takes_the_log_only() -> None:
    LogLines("/dev/full").write(b"lost")


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    LogLines("-").write(b'{"a":1}')
    assert capfdbinary.readouterr().out == b'{"a":1}\n'


def test_what_a_line_costs(tmp_path: Path) -> None:
    """The bar is 30 us; a machine that is busy with other tests gets three times that."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Message) -> None:
        pass

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def cost(layers: ASGIApp) -> float:
        begun = time.perf_counter()
        for _ in range(1000):
            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "client": ("127.0.0.1", 1)}
            await layers(scope, receive, send)
        return (time.perf_counter() - begun) / 1000

    plain, logged = RequestId(app), RequestId(AccessLog(app, LogLines(str(tmp_path / "a.log"))))
    added = min(-asyncio.run(cost(plain)) + asyncio.run(cost(logged)) for _ in range(7))
    assert added < 90e-6
