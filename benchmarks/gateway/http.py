"""A client that costs little: kept connections, requests as ready bytes, three times per answer. For loopback only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

CHAT = "/v1/chat/completions"
KEY = "bench-key-0123456789abcdef"
_KEPT = 600  # bytes of a body, for messages
_PATIENCE = 30.0  # seconds


class Failed(Exception):
    """A server did not do what it is measured at."""


@dataclass(slots=True)
class Reply:
    """Times in seconds since the request was written."""

    status: int
    head: bytes
    body: bytes  # its beginning
    first: float  # first byte of the body
    seconds: float  # last byte

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.encode():
                return value.strip().decode()
        return None


def request(path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP request: GET without a body, POST with one."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: 127.0.0.1", "accept: */*"]
    lines += [] if body is None else ["content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def chat(size: int, tokens: int, stream: bool, key: str = KEY) -> bytes:
    """A chat request with a prompt of about `size` bytes, as clients send it."""
    words = "Say in a few plain words what the following note of a meeting means for the people who were not there. "
    text = (words * (size // len(words) + 1))[:size]
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
    body = {"model": "clock", "messages": messages, "max_tokens": tokens, "temperature": 0.7, "top_p": 0.95}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return request(CHAT, body, {"authorization": f"Bearer {key}", "user-agent": "bench"})


class Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Reply] | None = None

    @classmethod
    async def to(cls, port: int) -> Connection:
        _, made = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return made

    async def ask(self, data: bytes) -> Reply:
        """Raises Failed when the connection closes before the answer is whole."""
        assert self._transport is not None and self._done is None
        if self._transport.is_closing():
            raise Failed("the server closed a connection that was at rest")
        self._done = asyncio.get_running_loop().create_future()
        self._data, self._head, self._tail, self._length = b"", b"", b"", -1
        self._first = 0.0
        self._begun = perf_counter()
        self._transport.write(data)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._done
        except TimeoutError:
            raise Failed(f"no answer within {_PATIENCE:g} s, {self._seen()}") from None
        finally:
            self._done = None

    def _seen(self) -> str:
        return f"after {self._got} bytes ending {self._tail!r}" if self._head else "not even its head"

    def leave(self) -> None:
        """As a client that vanishes."""
        assert self._transport is not None
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(Failed(f"connection closed in an answer ({error}): {self._head[:80]!r}"))

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if not self._head:
            self._data += data
            self._head, found, data = self._data.partition(b"\r\n\r\n")
            if not found:
                self._head = b""
                return
            self._data, self._got = b"", 0
            self._length = _length(self._head)
        if data and not self._first:
            self._first = now - self._begun
        self._got += len(data)
        if len(self._data) < _KEPT:
            self._data += data[:_KEPT]
        self._tail = (self._tail + data)[-5:]
        if self._got == self._length or (self._length < 0 and self._tail == b"0\r\n\r\n"):
            self._finish(now - self._begun)

    def _finish(self, seconds: float) -> None:
        if self._done is not None and not self._done.done():
            status = int(self._head[9:12])
            self._done.set_result(Reply(status, self._head, self._data, self._first, seconds))


def _length(head: bytes) -> int:
    """Of the body; -1: chunked."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return -1


async def expect(connection: Connection, data: bytes) -> Reply:
    """The answer, which must be a 200. Raises Failed."""
    reply = await connection.ask(data)
    if reply.status != 200:
        raise Failed(f"answered {reply.status}: {reply.body[:200]!r}")
    return reply
