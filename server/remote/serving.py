"""``thriftree serve --engine URL``: from the settings to "ready", and down again. No engine in this process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from thriftree.server import app, heap
from thriftree.server.console import Console
from thriftree.server.drain import Signals, drain
from thriftree.server.edge import Edge
from thriftree.server.http_protocol import bounded
from thriftree.server.parts import Parts
from thriftree.server.remote.args import parse, take_port
from thriftree.server.remote.engines import Engines
from thriftree.server.remote.health import Health
from thriftree.server.remote.pool import Pool
from thriftree.server.remote.proxy import Proxy
from thriftree.server.remote.upstream import Upstream
from thriftree.server.settings import Settings
from thriftree.server.state import GatewayState

_FILES = 65536  # open at once


@asynccontextmanager
async def running(settings: Settings, state: GatewayState) -> AsyncIterator[Engines]:
    """Engines are polled and the proxy is `state.engine_app`; entered when every engine was asked once.

    `state.phase` is "ready" while any engine is up and "no_engine" while none is; "draining" is left alone.
    """
    remote = settings.remote
    upstreams = [Upstream(url, state.metrics) for url in dict.fromkeys(settings.engine)]
    engines = Engines(upstreams, remote.health_seconds)

    def follow(available: bool) -> None:
        if state.phase != "draining":
            state.phase = "ready" if available else "no_engine"

    engines.on_change = follow
    asked = asyncio.Event()
    async with Pool(remote.connect_seconds, remote.max_connections) as pool:
        state.engine_app = Proxy(engines, pool, state.metrics, remote)
        polling = asyncio.create_task(Health(engines, remote.key, remote.health_seconds).run(asked))
        try:
            await asked.wait()
            follow(engines.available)
            yield engines
        finally:
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await polling


def main(settings: Settings, words: Sequence[str], console: Console) -> int:
    """Serve until told to stop; 0. Raises StartError before anything is served."""
    import uvloop

    args = parse(settings, words)
    state = GatewayState()
    for url in settings.engine:
        Upstream(url, state.metrics)  # says what is wrong with it before the port is taken
    parts = Parts.open(settings, state.metrics)
    parts.require_keys(settings, args.host, args.uds)
    sock, url = take_port(args)
    _raise_file_limit()
    return int(uvloop.run(_serve(settings, args, state, parts, sock, url, console)))


def _raise_file_limit() -> None:
    """Every stream holds two connections, and shells begin with 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(
    settings: Settings,
    args: argparse.Namespace,
    state: GatewayState,
    parts: Parts,
    sock: socket.socket,
    url: str,
    console: Console,
) -> int:
    signals = Signals()
    await parts.start()
    server = http_server(settings, args, state, parts)
    http = asyncio.create_task(server.serve(sockets=[sock]))
    async with running(settings, state) as engines:
        heap.settle()
        console.say(ready_line(url, engines))
        stopping = asyncio.create_task(signals.stop.wait())
        await asyncio.wait((stopping, http), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        console.say(f"stopping; running answers get {settings.drain_timeout:g} s")
        await drain(state, parts.gate, settings.drain_timeout, signals.now)
        server.should_exit = True
        await http
    await parts.stop()
    return 0


def ready_line(url: str, engines: Engines) -> str:
    """One line: where, and how each engine is."""
    each = ", ".join(f"{name} {'up' if one.up else one.why}" for name, one in engines.all.items())
    return f"{'ready' if engines.available else 'waiting for an engine'}: {url}/v1  engines {each}"


def http_server(settings: Settings, args: argparse.Namespace, state: GatewayState, parts: Parts) -> Any:
    """A uvicorn server for the gateway that leaves the signals to us."""
    import uvicorn

    config = uvicorn.Config(
        app.build(settings, state, parts, Edge.of(args)),
        http=bounded(settings.limits.max_header_bytes, settings.limits.header_seconds),
        lifespan="off",
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_graceful_shutdown=2,  # `drain` has waited for the answers
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        **({"ssl_ciphers": args.ssl_ciphers} if args.ssl_ciphers else {}),
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    return server
