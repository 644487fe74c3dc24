"""A request's body: read once, within bounds of size and time, parsed at most once, for whichever layer needs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from time import monotonic
from typing import Any

from starlette.types import Message, Receive, Scope

from thriftree.server.errors import ApiError
from thriftree.server.scope import header

MAX_VALUES = 1 << 20
_SEPARATORS = (b",", b"[", b"{")  # those in strings too: to count them costs nothing beside parsing


class ClientLeft(Exception):
    """The connection closed before the body was whole."""


class Body:
    """Stands between the server's `receive` and the layers; an ASGI `receive` itself."""

    def __init__(
        self, scope: Scope, receive: Receive, limit: int, seconds: float, max_values: int = MAX_VALUES
    ) -> None:
        self._receive, self._limit, self._seconds, self._max_values = receive, limit, seconds, max_values
        self._data: bytes | None = None
        self._played = self._left = False
        self._parsed: Any = self  # itself: not parsed yet
        declared = header(scope["headers"], b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            ApiError: 413 beyond the limits, 408 when it does not arrive in time.
            ClientLeft: there is nobody to answer.
        """
        if self._data is None:
            chunks: list[bytes] = []
            size, until = 0, monotonic() + self._seconds
            more = True
            while more:
                try:
                    async with asyncio.timeout(until - monotonic()):  # `wait_for` of 3.11 can swallow a cancellation
                        message = await self._receive()
                except TimeoutError:
                    why = f"the request body did not arrive within {self._seconds:g} s"
                    raise ApiError(408, "body_timeout", why, headers={"Connection": "close"}) from None
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > self._limit:
                    raise _too_large(self._limit)
                chunks.append(chunk)
                more = message.get("more_body", False)
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if len(data) > self._max_values and sum(map(data.count, _SEPARATORS)) > self._max_values:
                why = f"the request body has more than {self._max_values} values"
                raise ApiError(413, "body_too_complex", why)
            self._data = data
        return self._data

    async def parsed(self) -> Any:
        """The body as JSON, or None where it is none: vLLM words that complaint best."""
        await self.read()
        return self._json()

    async def field(self, name: str) -> Any:
        """A top-level member of the body; without parsing where the body does not hold the word."""
        await self.read()
        return self.member(name)

    def member(self, name: str) -> Any:
        """The same of a body that has been read; None before that."""
        if self._data is None or f'"{name}"'.encode() not in self._data:
            return None
        parsed = self._json()
        return parsed.get(name) if isinstance(parsed, dict) else None

    def _json(self) -> Any:
        if self._parsed is self:
            assert self._data is not None
            try:
                self._parsed = json.loads(self._data)
            except (ValueError, RecursionError):
                self._parsed = None
        return self._parsed

    async def gone(self) -> None:
        """Returns when the client has left; whoever reads on below hears of it too. Cancel it before the app runs."""
        await self.read()
        while not self._left:
            self._left = (await self._receive())["type"] == "http.disconnect"

    async def amend(self, members: Mapping[str, Any]) -> int:
        """Members put at the end of the body, an object, where they win; the rest stays as it came. Its new length."""
        data, parsed = await self.read(), await self.parsed()
        encoding = json.detect_encoding(data)
        if encoding not in ("utf-8", "utf-8-sig"):  # legal JSON, and never seen: but nobody slips through by it
            data = data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
        addition = json.dumps(members, separators=(",", ":"))[1:-1].encode()
        head = data.rstrip(b" \t\r\n").removesuffix(b"}")
        self._data = b"".join((head, b"," if parsed else b"", addition, b"}"))
        self._parsed = {**parsed, **members}
        return len(self._data)

    async def __call__(self) -> Message:
        """The body once, then whatever the server says: that is how a disconnect is heard."""
        if self._played:
            return {"type": "http.disconnect"} if self._left else await self._receive()
        data = await self.read()
        self._played = True
        return {"type": "http.request", "body": data, "more_body": False}


async def amended(scope: Scope, body: Body, members: Mapping[str, Any]) -> Scope:
    """The scope of a request whose body gets these members, and its length with it; the same scope where none."""
    if not members:
        return scope
    length = str(await body.amend(members)).encode()
    return {**scope, "headers": [(k, length if k == b"content-length" else v) for k, v in scope["headers"]]}


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"the request body is larger than {limit} bytes", headers={"Connection": "close"}
    )
