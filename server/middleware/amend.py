"""The `send` of a request whose answer gets a ``usage.thrift``. Everything else passes as the bytes that it is."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Message, Send

from thriftree.server.scope import header
from thriftree.server.usage import splice, splice_events

_END = b"\n\n"


class Amender:
    """JSON answers are amended whole, streams event by event as they pass."""

    def __init__(self, send: Send, addition: Callable[[], bytes | None], stream_depth: int) -> None:
        """`addition` gives the member to add, asked at the moment it is added; None: leave the answer alone."""
        self._send, self._addition, self._depth = send, addition, stream_depth
        self._start: Message | None = None  # of a JSON answer: held until its length is known
        self._body: list[bytes] = []
        self._stream = False
        self._tail = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._start is not None:
            await self._collect(message)
        elif self._stream:
            await self._pass_on(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = header(message["headers"], b"content-type") or b""
        if message["status"] == 200 and kind.startswith(b"application/json"):
            self._start = message
            return
        self._stream = message["status"] == 200 and kind.startswith(b"text/event-stream")
        await self._send(message)

    async def _collect(self, message: Message) -> None:
        self._body.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body, addition, start = b"".join(self._body), self._addition(), self._start
        assert start is not None
        if addition is not None and (amended := splice(body, addition)) is not None:
            body = amended
            others = [pair for pair in start["headers"] if pair[0] != b"content-length"]
            start = {**start, "headers": [*others, (b"content-length", str(len(body)).encode())]}
        self._start = None
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    async def _pass_on(self, message: Message) -> None:
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if self._tail or (chunk and more and not chunk.endswith(_END)):  # an event may be cut: wait for its end
            chunk, cut = self._cut(self._tail + chunk, more)
            self._tail = cut
            if not chunk and more:
                return
        if b'"usage"' in chunk and (addition := self._addition()) is not None:
            chunk = splice_events(chunk, addition, self._depth)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    def _cut(self, data: bytes, more: bool) -> tuple[bytes, bytes]:
        """Whole events, and the beginning of the next one."""
        if not more:
            return data, b""
        end = data.rfind(_END) + len(_END)
        return (data[:end], data[end:]) if end >= len(_END) else (b"", data)
