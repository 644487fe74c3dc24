"""Bounds a body in bytes, seconds and values; the layers below find its one reader in `info(scope).body`."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.body import MAX_VALUES, Body, ClientLeft
from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.scope import info

_REASONS = ("body_too_complex", "body_too_large", "body_timeout")


class BodyLimit:
    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_bytes: int, seconds: float, max_values: int = MAX_VALUES
    ) -> None:
        self.app, self.metrics = app, metrics
        self.limits = (max_bytes, seconds, max_values)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        request = info(scope)
        try:
            request.body = Body(scope, receive, *self.limits)
            await self.app(scope, request.body, send)
        except ClientLeft:
            request.left = True
        except ApiError as error:
            if error.code in _REASONS:
                self.metrics.bound(self.metrics.rejected, error.code).inc()
            raise
