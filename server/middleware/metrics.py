"""Counts and times every request, refused ones and those whose client left (499) included."""

from __future__ import annotations

import logging
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server.metrics import Metrics
from thriftree.server.scope import info

logger = logging.getLogger("thriftree.server")


class CountRequests:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, begun = info(scope), perf_counter()
        status, first, whole = 0, True, False

        async def watched_send(message: Message) -> None:
            nonlocal status, first, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
                if first and not whole:
                    self.metrics.first_chunk_seconds.observe(perf_counter() - begun)
                first = False
            await send(message)

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not whole:
                request.left = True
            return message

        try:
            await self.app(scope, watched_receive, watched_send)
        finally:
            code = "499" if request.left else str(status or 500)
            if code in ("499", "500"):
                logger.info("%s %s %s %s", request.request_id, scope["method"], request.route, code)
            self.metrics.bound(self.metrics.requests, request.route, code, request.tenant).inc()
            self.metrics.bound(self.metrics.request_seconds, request.route).observe(perf_counter() - begun)
