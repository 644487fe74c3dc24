"""`thriftree serve`: from the command line to the one line that says "ready", and down again."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thriftree.server import app, engine, heap, methods, settings, vllm_args, warmup
from thriftree.server.console import Console, debugging, fresh_log, plain
from thriftree.server.drain import Signals, cut, drain
from thriftree.server.edge import Edge
from thriftree.server.errors import ApiError, StartError
from thriftree.server.http_protocol import bounded
from thriftree.server.keys.start import take_vllm_keys
from thriftree.server.parts import Parts
from thriftree.server.quota import build as quota
from thriftree.server.state import GatewayState
from thriftree.zoo import cache, catalogue, smollm2

_WATCH_SECONDS = 0.2
_LAST_WORDS_SECONDS = 1.0  # for vLLM's own error events when its engine has died


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop. 0: stopped on request; 1: could not start, or the engine died, with one line why."""
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop takes both over
    try:
        ours, rest = settings.load(argv)
        if ours.engine:
            from thriftree.server.remote import serving

            return serving.main(ours, rest, console)
        plan = prepare(ours, rest, console)
    except (StartError, cache.ZooError) as error:
        if debugging():
            raise
        console.fail(str(error))
        return 1
    except KeyboardInterrupt:
        return 0
    except Exception as error:
        if debugging():
            raise
        console.fail(f"{plain(error)} (THRIFTREE_DEBUG=1 shows where)")
        return 1
    import uvloop

    return int(uvloop.run(Serving(plan, console).run()))


@dataclass(frozen=True)
class Plan:
    """Everything decided before anything heavy starts."""

    settings: settings.Settings
    args: argparse.Namespace
    state: GatewayState
    parts: Parts
    sock: socket.socket
    url: str
    name: str


def prepare(ours: settings.Settings, rest: Sequence[str], console: Console) -> Plan:
    """Check what can be checked early, unpack the default model if it is the one, take the port."""
    _check_version()
    vllm_args.environment()
    console.say("reading the flags")
    if ours.log_file != "-" and not debugging():
        given = Path(ours.log_file).expanduser() if ours.log_file else None
        console.redirect(given or fresh_log(cache.root() / "logs"))
    args = vllm_args.parse(ours.vllm, rest, smollm2.NAME)
    if args.model is None:
        args.model = str(smollm2.ensure(progress=console.say))
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    elif args.model.startswith(catalogue.SCHEME):
        _from_zoo(args, console)
    else:
        vllm_args.check_model(args.model)
    try:
        trees = engine.configure(args, *_wanted(ours))
        state = GatewayState(capabilities=_capabilities(args, trees))
    except ValueError as error:
        raise StartError(str(error)) from None
    parts = Parts.open(ours, state.metrics, take_vllm_keys(args))
    parts.require_keys(ours, args.host, args.uds)
    name = args.served_model_name[0] if args.served_model_name else args.model
    sock, url = _take_port(args)
    return Plan(ours, args, state, parts, sock, url, name)


def _from_zoo(args: argparse.Namespace, console: Console) -> None:
    """``zoo:NAME``: its folder, served as NAME, computed in float32 unless the flags say otherwise."""
    args.model, name = catalogue.resolve(args.model, console.say)
    args.served_model_name = args.served_model_name or [name]
    args.dtype = "float32" if args.dtype == "auto" else args.dtype
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _check_version() -> None:
    from thriftree.plugins.engine import surface

    try:
        surface.check_version()
    except RuntimeError as error:
        raise StartError(str(error)) from None


def _wanted(ours: settings.Settings) -> tuple[dict[str, Any] | None, ...]:
    """Options of speculation, KV compression and visual-token pruning; None: not on this server."""
    if ours.thrift == "off":
        return None, None, None
    kv = None if ours.kv.compression == "off" else ours.kv.model_dump()
    vision = None if ours.vision.pruning == "off" else ours.vision.model_dump()
    return ours.speculation.model_dump(), kv, vision


def _capabilities(args: argparse.Namespace, trees: bool) -> Any:
    from thriftree.plugins.engine.options import SpeculationOptions

    options = SpeculationOptions.of(args.additional_config or {}) if trees else SpeculationOptions()
    return methods.capabilities(trees, options.method, options.max_nodes)


def _take_port(args: argparse.Namespace) -> tuple[socket.socket, str]:
    from vllm.entrypoints.launchers.launcher import create_server_socket, create_server_unix_socket

    try:
        if args.uds:
            return create_server_unix_socket(args.uds), f"unix:{args.uds}"
        sock: socket.socket = create_server_socket((args.host or "", args.port), reuse_port=False)
        sock.listen(1)  # a port that somebody listens on can be bound beside him, but not listened on
    except (OSError, OverflowError) as error:
        where = args.uds or f"{args.host}:{args.port}"
        raise StartError(f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}; use --port") from None
    scheme = "https" if args.ssl_certfile else "http"
    return sock, f"{scheme}://{args.host or '0.0.0.0'}:{sock.getsockname()[1]}"


class Serving:
    """One life: listen, load, warm up, serve, drain."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console, self.state, self.parts = plan, console, plan.state, plan.parts

    async def run(self) -> int:
        self.signals = Signals()
        try:
            await self.parts.start()
        except StartError as error:
            self.console.fail(str(error))
            return 1
        try:
            return await self._run()
        finally:
            await self.parts.stop()

    async def _run(self) -> int:
        server = self._http()
        http = asyncio.create_task(server.serve(sockets=[self.plan.sock]))
        loading = asyncio.create_task(engine.load(self.plan.args, server, self.plan.settings.limits.private_media))
        stopping = asyncio.create_task(self.signals.stop.wait())
        self.console.say(f"loading {self.plan.name}" + (f" (log: {self.console.log})" if self.console.log else ""))
        await asyncio.wait((loading, stopping, http), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return self._abandon()
        try:
            loaded = loading.result()
        except (Exception, SystemExit) as error:
            if debugging():
                traceback.print_exception(error)
            self.console.fail(f"cannot serve {self.plan.name}: {self._cause(error)}")
            return self._leave(1)
        async with engine.running(loaded):
            code = await self._serve(loaded, http)
            server.should_exit = True
            if self.signals.now.is_set():
                return self._leave(code)
            await http
        return code

    async def _serve(self, loaded: engine.Loaded, http: asyncio.Task[None]) -> int:
        self.console.say("warming up")
        complaint = await warmup.warm_up(loaded.app, self.plan.name, loaded.tasks)
        if complaint is not None:
            self.console.fail(f"{self.plan.name} loaded, but its first request failed: {self.console.cause(complaint)}")
            return 1
        profile = self.plan.settings.thrift
        kv, vision = engine.kv_terms(loaded.client, profile), engine.vision_terms(loaded.client, profile)
        self.state.capabilities = replace(self.state.capabilities, kv=kv, vision=vision)
        if self.state.capabilities.speculation:
            self.state.drafter_stats.rpc = loaded.client.collective_rpc
        if vision.reason is None:
            self.state.selection_failures.rpc = loaded.client.collective_rpc
        self.state.prompt_counter = await asyncio.to_thread(quota.prompt_counter, loaded.app.state)
        if self.parts.gate.max_running is None:
            self.parts.gate.max_running = loaded.max_running
        heap.settle()
        self.state.engine_app, self.state.phase = loaded.app, "ready"
        self.console.say(self._ready_line())
        stop, now, gate = self.signals.stop, self.signals.now, self.parts.gate
        while not (stop.is_set() or http.done() or loaded.dead):
            try:
                await asyncio.wait_for(stop.wait(), _WATCH_SECONDS)
            except TimeoutError:
                continue
        if stop.is_set() and not loaded.dead:
            self.console.say(f"stopping; running answers get {self.plan.settings.drain_timeout:g} s")
            left = await drain(self.state, gate, self.plan.settings.drain_timeout, now)
            if left:
                self.console.say(f"{left} answers were cut")
            return 0
        self.state.phase = "failed"
        gate.close()
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        await cut(self.state, gate, ApiError(500, "engine_died", "the engine died; the server restarts"), now)
        self.console.fail(f"the engine died: {self.console.cause('see its log')}")
        return 1

    def _ready_line(self) -> str:
        can = self.state.capabilities
        force = f"{can.method} (up to {can.max_nodes} nodes)" if can.speculation else "off"
        kv = f"on request ({can.kv.method})" if can.kv.reason is None else "off"
        images = f"  images on request ({can.vision.method})" if can.vision.reason is None else ""
        profile = self.plan.settings.thrift
        said = f"model {self.plan.name}  profile {profile}  speculation {force}  kv {kv}{images}"
        return f"ready: {self.plan.url}/v1  {said}"

    def _http(self) -> Any:
        import uvicorn
        from vllm import envs
        from vllm.entrypoints.launchers.launcher import NoSignalServer

        args, limits = self.plan.args, self.plan.settings.limits
        config = uvicorn.Config(
            app.build(self.plan.settings, self.state, self.parts, Edge.of(args)),
            http=bounded(
                min(args.h11_max_incomplete_event_size, limits.max_header_bytes),
                limits.header_seconds,
                args.h11_max_header_count,
            ),
            host=args.host or "0.0.0.0",
            port=args.port,
            lifespan="off",
            log_level=args.uvicorn_log_level,
            access_log=not args.disable_uvicorn_access_log,
            timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
            timeout_graceful_shutdown=2,  # `drain` has waited for the answers
            ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs,
            ssl_cert_reqs=args.ssl_cert_reqs,
            **({"ssl_ciphers": args.ssl_ciphers} if args.ssl_ciphers else {}),
        )
        return NoSignalServer(config)

    def _cause(self, error: BaseException) -> str:
        own = plain(error)
        return self.console.cause(own) if "ngine core" in own or "ngineCore" in own else own

    def _abandon(self) -> int:
        self.console.say("stopped while loading")
        return self._leave(0)

    def _leave(self, code: int) -> int:
        """Out, with what was being loaded: its thread cannot be interrupted, its processes can."""
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)
