"""One server of the benchmark, in a process of its own: ``python -m thriftree.benchmarks.gateway.serve SPEC``.

SPEC is JSON: ``settings`` (of the gateway; null: the engine's app alone), ``engine`` (fields of `TokenClock`) and
``tokenizer`` (a model's folder: prompts are counted as behind a real engine; null: they are estimated). It prints its
port. ``/bench/engine`` is answered in front of everything: GET tells the engine's counts, POST sets its speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.benchmarks.gateway_engine import TokenClock
from thriftree.server import app as gateway
from thriftree.server import heap
from thriftree.server.http_protocol import bounded
from thriftree.server.methods import capabilities
from thriftree.server.parts import Parts
from thriftree.server.settings import Settings
from thriftree.server.state import GatewayState

CONTROL = "/bench/engine"
_MODELS = b'{"object": "list", "data": [{"id": "clock", "object": "model"}]}'
_BACKLOG = 4096
KEEP_SECONDS = 300  # connections rest while others have their turns


class Bench:
    """The outermost app: the benchmark's own route, then what is measured."""

    def __init__(self, app: ASGIApp, engine: TokenClock) -> None:
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != CONTROL:
            return await self.app(scope, receive, send)
        if scope["method"] == "POST":
            self.engine.set(**json.loads((await receive())["body"]))
        await _answer(send, json.dumps(self._counts()).encode())

    def _counts(self) -> dict[str, int]:
        engine = self.engine
        counts = {name: getattr(engine, name) for name in ("running", "waiting", "finished", "aborted", "tokens")}
        return {**counts, "tasks": len(asyncio.all_tasks())}


class Engine:
    """The engine's app: what GET asks of a server, then the token clock."""

    def __init__(self, clock: TokenClock) -> None:
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            return await _answer(send, _MODELS if scope["path"] == "/v1/models" else b"{}")
        await self.clock(scope, receive, send)


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve(spec: dict[str, Any], sock: socket.socket) -> None:
    import uvicorn

    clock = TokenClock(**spec["engine"])
    async with contextlib.AsyncExitStack() as stack:
        app: ASGIApp = Engine(clock)
        http: Any = "httptools"
        if spec["settings"] is not None:
            settings = Settings(**spec["settings"])
            app = await _gateway(spec, settings, app, stack)
            http = bounded(settings.limits.max_header_bytes, settings.limits.header_seconds)
        config = uvicorn.Config(
            Bench(app, clock), loop="uvloop", http=http, lifespan="off", log_level="warning",
            access_log=False, backlog=_BACKLOG, timeout_graceful_shutdown=1, timeout_keep_alive=KEEP_SECONDS,
        )  # fmt: skip
        server = uvicorn.Server(config)
        config.load()  # its modules too
        heap.settle()
        await server.serve(sockets=[sock])


async def _gateway(
    spec: dict[str, Any], settings: Settings, engine: ASGIApp, stack: contextlib.AsyncExitStack
) -> ASGIApp:
    """All layers, as `thriftree serve` builds them."""
    state = GatewayState(capabilities=capabilities(True, "auto", 16), engine_app=engine, phase="ready")
    if spec.get("tokenizer"):
        state.prompt_counter = _counter(spec["tokenizer"])
    parts = Parts.open(settings, state.metrics)
    await parts.start()
    stack.push_async_callback(parts.stop)
    if settings.engine:
        from thriftree.server.remote.serving import running

        await stack.enter_async_context(running(settings, state))
    return gateway.build(settings, state, parts)


def _counter(model: str) -> Any:
    from transformers import AutoTokenizer

    from thriftree.server.quota.prompt_tokens import TokenizerCounter

    return TokenizerCounter(AutoTokenizer.from_pretrained(model))


def main() -> None:
    import uvloop

    sock = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    print(sock.getsockname()[1], flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(json.loads(sys.argv[1]), sock))


if __name__ == "__main__":
    main()
