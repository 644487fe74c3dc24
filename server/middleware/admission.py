"""Who gets into the engine, and when: a place in it, a place in the queue, or an answer that says when to come back."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.admission.cost import estimate, urgency
from thriftree.server.admission.gate import Gate, Place
from thriftree.server.admission.routes import POOLING, computes
from thriftree.server.body import Body, ClientLeft
from thriftree.server.deadlines import missed, total_seconds
from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.permits import PRIORITY_HEADER
from thriftree.server.scope import RequestInfo, header, info
from thriftree.server.sections import Deadlines


class Admission:
    """The whole body is read before a place is taken, so that slow senders hold none; it is parsed only to queue."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, limits: Deadlines) -> None:
        self.app, self.gate, self.metrics, self.limits = app, gate, metrics, limits
        metrics.queue_depth.set_function(lambda: gate.queue.requests)
        metrics.queue_tokens.set_function(lambda: gate.queue.tokens)
        metrics.running.set_function(lambda: gate.running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not computes(scope):
            return await self.app(scope, receive, send)
        request = info(scope)
        body = request.body
        assert body is not None  # `body_limit` is above
        await body.read()
        try:
            if self.gate.try_enter():
                self.metrics.queue_wait_seconds.observe(0)
            else:
                await self._queue(scope, request, body)
        except ApiError as error:
            self._count(error)
            raise
        try:
            await self.app(scope, receive, send)
        finally:
            self.gate.leave()

    async def _queue(self, scope: Scope, request: RequestInfo, body: Body) -> None:
        """Wait for a place, as long as there is somebody to answer.

        Raises:
            ApiError: no room (429), the gate is closed (503), a deadline (408), a header that is none (400).
            ClientLeft: nobody to answer.
        """
        begun, who = monotonic(), request.principal
        total = total_seconds(self.limits, scope["headers"])
        self.gate.check(who.tenant, who.weight)
        parsed = await body.parsed()
        cost = estimate(len(await body.read()), request.prompt_tokens, parsed, request.route not in POOLING)
        priority = urgency(parsed, who.caps.priority, header(scope["headers"], PRIORITY_HEADER))
        place = self.gate.ask(who.tenant, who.weight, priority, cost)
        try:
            queue, rest = self.limits.queue or inf, request.arrived + total - begun
            if queue <= rest:
                await _wait(place, body, queue, missed("queue", queue))
            else:
                await _wait(place, body, rest, missed("total", total))
        except BaseException:
            self.gate.give_up(place)
            raise
        self.metrics.queue_wait_seconds.observe(monotonic() - begun)

    def _count(self, error: ApiError) -> None:
        if error.status != 400:
            self.metrics.bound(self.metrics.rejected, error.code).inc()
        if error.status == 408:
            self.metrics.bound(self.metrics.deadline_exceeded, error.code.removeprefix("deadline_")).inc()


async def _wait(place: Place, body: Body, seconds: float, late: ApiError) -> None:
    """Until the place is granted; raises `late` after so many seconds, ClientLeft as soon as the client is gone."""
    leaving = asyncio.ensure_future(body.gone())
    timeout = max(0.0, seconds) if seconds < inf else None
    try:
        await asyncio.wait((place.granted, leaving), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            leaving.result()
            raise ClientLeft
        if not place.granted.done():
            raise late
        place.granted.result()
    finally:
        leaving.cancel()
