"""One JSON line per request: who, what, how it ended, what it cost. Never a prompt, never a key, no query string."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from time import perf_counter, time
from typing import Any

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server.log_lines import LogLines
from thriftree.server.scope import RequestInfo, info


class AccessLog:
    def __init__(self, app: ASGIApp, lines: LogLines) -> None:
        self.app, self.log = app, _logger(lines)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, wall = perf_counter(), time()
        status, size, first = 0, 0, 0.0

        async def watched(message: Message) -> None:
            nonlocal status, size, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif body := message.get("body"):
                if size == 0:
                    first = perf_counter()
                size += len(body)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            now, request = perf_counter(), info(scope)
            self.log.info(
                "request",
                time=_stamp(wall),
                **_facts(scope, request),
                status=499 if request.left else status or 500,
                left=request.left,
                bytes=size,
                seconds=round(now - begun, 6),
                first_byte_seconds=round(first - begun, 6) if size else None,
            )


def _facts(scope: Scope, request: RequestInfo) -> dict[str, Any]:
    report, client = request.report, scope.get("client")
    return {
        "request_id": request.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "route": request.route,
        "tenant": request.tenant,
        "key_id": request.principal.key_id,
        "prompt_tokens": report.prompt_tokens or request.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "steps": report.steps,
        "speculation": report.method,
    }


def _logger(lines: LogLines) -> Any:
    """structlog with nothing between the call and the line but JSON."""
    renderer = structlog.processors.JSONRenderer(serializer=_encode)
    return structlog.wrap_logger(_Lines(lines), processors=[renderer], wrapper_class=structlog.BoundLogger).bind()


class _Lines:
    """What structlog writes to."""

    def __init__(self, lines: LogLines) -> None:
        self.info = lines.write


_encoder = msgspec.json.Encoder()


def _encode(event: Any, **_: Any) -> bytes:
    return _encoder.encode(event)


@lru_cache(4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _stamp(wall: float) -> str:
    """RFC 3339 with milliseconds, in UTC."""
    return f"{_second(int(wall))}.{int(wall % 1 * 1000):03d}Z"
