"""Reads a request's body once, within bounds, and plays it back to whoever is below."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope

from thriftree.server.errors import ApiError
from thriftree.server.scope import header


class ClientLeft(Exception):
    """The connection closed before the body was whole."""


async def read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413 beyond `limit` bytes, by the header where there is one, so nothing is read in vain.
        ClientLeft: there is nobody to answer.
    """
    declared = header(scope["headers"], b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then whatever the server says: that is how a disconnect is heard."""
    played = False

    async def again() -> Message:
        nonlocal played
        if played:
            return await receive()
        played = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the request body is larger than {limit} bytes")
