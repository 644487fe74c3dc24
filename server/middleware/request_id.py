"""Gives every request an id: the client's `X-Request-Id` if it is a sane one, else a new one. vLLM uses it too."""

from __future__ import annotations

import re
from os import urandom

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server.scope import RequestInfo, header, set_info

_SANE = re.compile(rb"[\w.:-]{1,128}")


class RequestId:
    """Outermost: everything below finds `scope.info`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = header(scope["headers"], b"x-request-id")
        name = asked if asked is not None and _SANE.fullmatch(asked) else urandom(16).hex().encode()
        others = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        scope = {**scope, "headers": [*others, (b"x-request-id", name)]}
        set_info(scope, RequestInfo(request_id=name.decode()))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                rest = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*rest, (b"x-request-id", name)]}
            await send(message)

        await self.app(scope, receive, named)
