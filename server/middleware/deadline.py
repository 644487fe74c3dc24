"""Ends requests that take too long: 408 before the first byte, an error event after it, an abort in the engine.

How the abort works: vLLM's handlers end, and abort in the engine, when they hear that their client has left, so that is
what they are told (cancelled from outside, some would leave their own task behind, generating). What does not end by
that is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server.admission.routes import computes
from thriftree.server.deadlines import Course, total_seconds
from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.scope import RequestInfo, header, info
from thriftree.server.sections import Deadlines

logger = logging.getLogger("thriftree.server")
_GRACE = 0.2  # seconds for the app to end by itself


class Deadline:
    def __init__(self, app: ASGIApp, metrics: Metrics, limits: Deadlines) -> None:
        self.app, self.metrics, self.limits = app, metrics, limits
        self._watches: set[_Watch] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not computes(scope):
            return await self.app(scope, receive, send)
        request = info(scope)
        course = Course.of(self.limits, total_seconds(self.limits, scope["headers"]), request.arrived)
        watch = _Watch(request, course, receive, send)
        self._watches.add(watch)
        try:
            await watch.run(self.app, scope)
        except ApiError as error:
            if error is watch.error and error.code.startswith("deadline_"):
                self.metrics.bound(self.metrics.deadline_exceeded, error.code.removeprefix("deadline_")).inc()
            raise
        finally:
            self._watches.discard(watch)

    def end_all(self, error: ApiError) -> int:
        """End every running request with that error (an event where a stream has begun); how many there were."""
        for watch in self._watches:
            watch.end(error)
        return len(self._watches)


class _Watch:
    """The `receive` and `send` of one request. One timer, which looks again when it wakes: chunks touch none."""

    def __init__(self, request: RequestInfo, course: Course, receive: Receive, send: Send) -> None:
        self.error: ApiError | None = None  # what ends the request before its time
        self._loop = asyncio.get_running_loop()
        self._request, self._course = request, course
        self._receive, self._send = receive, send
        self._start: Message | None = None  # of a stream: held until its first chunk, for a 408 is a status
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        self._listening: list[asyncio.Timeout] = []

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Raises ApiError when a deadline was missed, or `end` was called."""
        try:
            async with asyncio.timeout(None) as self._patience:
                self._look()
                if self.error is None:
                    await app(scope, self.receive, self.send)
        except Exception:
            if self.error is None:
                raise
            logger.debug("request %s: how its app ended", self._request.request_id, exc_info=True)
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if self.error is not None:
            raise self.error

    async def receive(self) -> Message:
        if self.error is None and not self._asked:  # for the body: that has its own limit
            self._asked = True
            return await self._receive()
        if self.error is None:
            listening = asyncio.timeout(None)
            try:
                async with listening:
                    self._listening.append(listening)
                    return await self._receive()
            except TimeoutError:
                if not listening.expired():
                    raise
            finally:
                self._listening.remove(listening)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.error is not None:  # how the app takes its leave is of no interest
            return
        if message["type"] == "http.response.start":
            self._course.whole = not (header(message["headers"], b"content-type") or b"").startswith(b"text/event-")
            if not self._course.whole:
                self._start = message
                return
        elif not message.get("body", b"").startswith(b":"):  # a keep-alive comment is no token
            self._course.last = monotonic()
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
        await self._send(message)
        if self._timer is not None and message["type"] == "http.response.body" and not message.get("more_body"):
            self._timer.cancel()

    def _look(self) -> None:
        """Whether a deadline has passed, and when to look again."""
        when, deadline = self._course.next()
        left = when - monotonic()
        if left > 0:
            left = left if self._course.whole else min(left, self._course.between_tokens)  # its turn may come meanwhile
            self._timer = self._loop.call_later(left, self._look) if left < inf else None
        elif deadline == "first_token" and self._start is None and not self._streams():
            self._course.whole = True
            self._look()
        else:
            self.end(self._course.missed(deadline))

    def _streams(self) -> bool:
        body = self._request.body
        return body is not None and body.member("stream") is True

    def end(self, error: ApiError) -> None:
        """Let the app end now; whatever it says from here on is not heard."""
        if self.error is not None:
            return
        self.error, now = error, self._loop.time()
        for listening in self._listening:
            listening.reschedule(now)
        self._patience.reschedule(now + _GRACE)
