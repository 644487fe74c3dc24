"""Bounds what a body may cost in bytes and seconds; the layers below find its one reader in `info(scope).body`."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.body import Body, ClientLeft
from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.scope import info

_REASONS = ("body_too_large", "body_timeout")


class BodyLimit:
    def __init__(self, app: ASGIApp, metrics: Metrics, max_bytes: int, seconds: float) -> None:
        self.app, self.metrics, self.max_bytes, self.seconds = app, metrics, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        request = info(scope)
        try:
            request.body = Body(scope, receive, self.max_bytes, self.seconds)
            await self.app(scope, request.body, send)
        except ClientLeft:
            request.left = True
        except ApiError as error:
            if error.code in _REASONS:
                self.metrics.bound(self.metrics.rejected, error.code).inc()
            raise
