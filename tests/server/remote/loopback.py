"""Servers on loopback sockets in this loop: engines that do what a test tells them, and the gateway in front."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.app import build
from thriftree.server.remote.engines import Engines
from thriftree.server.remote.serving import running
from thriftree.server.settings import Settings
from thriftree.server.state import GatewayState

Handler = Callable[["Engine", Scope, Receive, Send], Awaitable[None]]


class Served:
    """An ASGI app on a free port; `kill` breaks every connection and listens no more."""

    def __init__(self, app: ASGIApp, http: Any = "auto") -> None:
        config = uvicorn.Config(
            app, interface="asgi3", lifespan="off", log_level="critical", timeout_graceful_shutdown=0, http=http
        )
        self._server = uvicorn.Server(config)
        self._server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
        self._sock = socket.socket()
        self._sock.bind(("127.0.0.1", 0))
        self._sock.listen(128)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Any:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        while not self._server.started:
            await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        await self._task

    async def kill(self) -> None:
        for listener in self._server.servers:
            listener.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)


class Engine(Served):
    """Answers health checks as it is told; `handler` answers the rest. Remembers what it saw."""

    def __init__(self, handler: Handler | None = None, models: tuple[str, ...] = ("tiny",), ready: int = 200) -> None:
        super().__init__(self._app)
        self.handler: Handler = handler or plain
        self.models, self.ready = models, ready
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.left = asyncio.Event()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in ("/ready", "/health"):
            return await answer(send, self.ready if path == "/ready" else 200, b"{}")
        if path == "/v1/models":
            data = [{"id": model, "object": "model", "max_model_len": 7} for model in self.models]
            return await answer(send, 200, json.dumps({"object": "list", "data": data}).encode())
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await self.handler(self, scope, receive, send)

    @property
    def asked(self) -> int:
        return len(self.bodies)

    def header(self, name: str) -> list[bytes]:
        """Of the last request."""
        return [value for key, value in self.scopes[-1]["headers"] if key == name.encode()]

    def hang(self) -> None:
        """From now on nothing is accepted and nobody is told: new connections wait in the kernel."""
        for listener in self._server.servers:
            for sock in listener.sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())


async def answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    lead = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*lead, *headers]})
    await send({"type": "http.response.body", "body": body})


async def plain(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    await answer(send, 200, json.dumps({"port": engine.port, "usage": usage}).encode())


async def begin_stream(send: Send) -> None:
    head = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": head})


async def event(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + text + b"\n\n", "more_body": True})


async def endless(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
    """A stream of events until the client leaves."""
    leaving = asyncio.create_task(receive())
    await begin_stream(send)
    number = 0
    while not leaving.done():
        await event(send, b'{"n":%d}' % number)
        number += 1
        await asyncio.sleep(0.005)
    engine.left.set()


class Gateway(Served):
    def __init__(self, settings: Settings) -> None:
        self.settings, self.state = settings, GatewayState()
        self.engines: Engines
        super().__init__(build(settings, self.state))

    def metric(self, name: str, **labels: str) -> float:
        return self.state.metrics.registry.get_sample_value(f"thriftree_{name}", labels) or 0.0


@asynccontextmanager
async def gateway(*urls: str | Engine, **settings: Any) -> AsyncIterator[Gateway]:
    """The whole gateway in front of those engines, which run."""
    remote = {"health_seconds": 0.1, **settings.pop("remote", {})}
    engine = [url if isinstance(url, str) else url.url for url in urls]
    server = Gateway(Settings(engine=engine, remote=remote, **settings))
    async with server, running(server.settings, server.state) as server.engines:
        yield server


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
