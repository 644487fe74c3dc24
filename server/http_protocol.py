"""uvicorn's HTTP protocol (httptools), bounded: size and time of a request's head, pipelined requests; and our errors.

httptools has none of its own: one header may be of any length, and a client that sends a byte now and then holds its
connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from thriftree.server.errors import ApiError

if TYPE_CHECKING:
    _Base = asyncio.Protocol
else:
    _Base = HttpToolsProtocol

_PIPELINED = 16  # requests that wait behind one on the same connection
_WORTH = 8  # bytes of framing that a byte of the body pays for: a chunk of one byte has six
_LAST_SECONDS = 1.0  # for a refused client to notice
_LINGER_SECONDS = 5.0  # for the rest of a body that nobody reads any more, and for the next request after it
_MALFORMED = ApiError(400, "invalid_http", "the request is not valid HTTP/1.1")


def bounded(max_header_bytes: int, header_seconds: float, max_headers: int = 256) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=...)`."""
    bounds = {"max_bytes": max_header_bytes, "seconds": header_seconds, "max_headers": max_headers}
    return type("BoundedHttp", (BoundedHttp,), bounds)


class BoundedHttp(_Base):
    """One connection. What is over a bound is answered 431 or 408 in OpenAI's shape, and the connection ends.

    Where an answer is on its way already, the connection just ends.
    """

    max_bytes: int
    max_headers: int
    seconds: float

    if TYPE_CHECKING:
        cycle: Any
        headers: list[tuple[bytes, bytes]]
        loop: asyncio.AbstractEventLoop
        pipeline: Any
        transport: Any
        url: bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._spare = self.max_bytes
        self._heard = self._in_head = self._over = False
        self._refusal: ApiError | None = None
        self._running: Any = None
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        running = self._running
        if running is not None and running is not self.cycle:  # uvicorn tells only the last one that was pipelined
            running.disconnected = True
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._heard = True
        self._spare -= len(data)
        super().data_received(data)
        if self.transport.is_closing() or self._over:
            return
        if self._spare < 0:
            self._refuse(self._too_large())
        elif self._in_head and self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()  # type: ignore[misc]
        self._spare, self._in_head = self.max_bytes, True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.max_bytes or len(self.headers) > self.max_headers:
            self._refusal = self._too_large()
            raise self._refusal
        if len(self.pipeline) >= _PIPELINED:
            raise _MALFORMED
        super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        self._spare += _WORTH * len(body)
        super().on_body(body)  # type: ignore[misc]

    def on_message_complete(self) -> None:
        self._stop_timer()
        super().on_message_complete()  # type: ignore[misc]
        if self.cycle is not None and self.cycle.response_complete:  # uvicorn's own keep-alive timer was stopped
            self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def on_response_complete(self) -> None:
        unread = self._running.more_body
        super().on_response_complete()  # type: ignore[misc]
        if unread and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or _MALFORMED)

    def _too_slow(self) -> None:
        self._timer = None
        why = f"the request's head did not arrive within {self.seconds:g} s"
        self._refuse(ApiError(408, "header_timeout", why))

    def _refuse(self, error: ApiError) -> None:
        """Answer, unless another answer is being sent or nothing was asked, and close."""
        answering = self._running is not None and not self._running.response_complete
        if self.transport.is_closing() or answering or not self._heard:
            self.transport.close()
            return
        body = error.body()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closed with unread bytes, the kernel would reset the connection, and the answer would be lost.
        self._over = True
        self._stop_timer()
        self._timer = self.loop.call_later(_LAST_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self) -> ApiError:
        why = f"the request's line and headers are larger than {self.max_bytes} bytes or more than {self.max_headers}"
        return ApiError(431, "headers_too_large", why)
