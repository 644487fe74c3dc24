"""The ASGI app in the place of vLLM's: bytes in, bytes out, to and from an engine elsewhere."""

from __future__ import annotations

import logging

import aiohttp
from starlette.types import Receive, Scope, Send

from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.remote.attempts import Attempts
from thriftree.server.remote.departure import Departure
from thriftree.server.remote.engines import Engines
from thriftree.server.remote.headers import returned
from thriftree.server.remote.meter import Meter
from thriftree.server.remote.outgoing import Outgoing, outgoing
from thriftree.server.remote.pool import Pool
from thriftree.server.remote.upstream import Attempt
from thriftree.server.scope import header, info
from thriftree.server.sections import Remote

logger = logging.getLogger("thriftree.server")
_JSON = (b"content-type", b"application/json")


class Proxy:
    """Needs `info(scope)` and, for methods with a body, `info(scope).body`: the layers above put them there."""

    def __init__(self, engines: Engines, pool: Pool, metrics: Metrics, remote: Remote) -> None:
        self._engines, self._metrics, self._remote = engines, metrics, remote
        self._attempts = Attempts(engines, pool, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 4404, "reason": "not through a gateway"})
        listing = info(scope).route == "/v1/models" and scope["method"] == "GET"
        if listing and (models := self._engines.models()) is not None:
            return await _answer(send, models)
        out = await outgoing(scope, self._remote.key, self._remote.prefix_bytes)
        async with Departure(receive) as client:
            await self._exchange(scope, out, client, send)
        if client.left:
            info(scope).left = True

    async def _exchange(self, scope: Scope, out: Outgoing, client: Departure, send: Send) -> None:
        try:
            attempt, response = await self._attempts.first_answer(out)
        except ApiError as error:
            if error.code == "no_engine":
                self._metrics.bound(self._metrics.rejected, error.code).inc()
            raise
        request = info(scope)
        passage = _Passage(response, client, send)
        outcome = "left"  # also for whoever cancels this
        try:
            await passage.run(Meter(request.report, request.prompt_tokens) if response.status == 200 else None)
            outcome = "error" if response.status >= 500 else "answered"
        except _BrokenOff as broken:
            outcome = "broken"
            logger.warning("engine %s broke off an answer (%s)", attempt.engine.name, broken)
            await passage.close_event()
            why = "the engine closed the connection in the middle of the answer"
            raise ApiError(502, "engine_lost", why) from broken
        finally:
            self._end(attempt, response, outcome)
            self._metrics.count_report(request.report, request.report.method, request.tenant)

    def _end(self, attempt: Attempt, response: aiohttp.ClientResponse, outcome: str) -> None:
        """A connection whose answer was read to its end is kept; any other is closed, and its engine aborts."""
        if outcome in ("left", "broken"):
            response.close()
        attempt.end(outcome)


class _BrokenOff(Exception):
    """The engine's connection closed before its answer was whole."""


class _Passage:
    """One answer on its way to the client."""

    def __init__(self, response: aiohttp.ClientResponse, client: Departure, send: Send) -> None:
        self._response, self._client, self._send = response, client, send
        kind = header(((k.lower(), v) for k, v in response.raw_headers), b"content-type") or b""
        self._stream = kind.startswith(b"text/event-stream")
        self._last = b"\n"

    async def run(self, meter: Meter | None) -> None:
        response, send = self._response, self._send
        content = response.content
        see = None if meter is None else meter.events if self._stream else meter.feed
        headers = returned(response.raw_headers)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        more = True
        while more:
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, ConnectionError) as error:
                raise _BrokenOff(f"{type(error).__name__}: {error}") from error
            if see is not None:
                see(chunk)
            if content.at_eof():
                more = False
                self._client.answered()
            elif not chunk:
                continue
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
            self._last = chunk

    async def close_event(self) -> None:
        """An event that was cut in the middle ends here, so that the error behind it can be read."""
        if self._stream and not self._last.endswith(b"\n\n"):
            await self._send({"type": "http.response.body", "body": b"\n\n", "more_body": True})


async def _answer(send: Send, body: bytes) -> None:
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
