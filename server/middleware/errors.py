"""One error shape for everything below: our own errors, vLLM's, the framework's, and plain bugs."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server.errors import ApiError
from thriftree.server.scope import header, info

logger = logging.getLogger("thriftree.server")
_KEPT = (b"allow", b"retry-after", b"www-authenticate", b"x-ratelimit-")  # beginnings of names


class OneErrorShape:
    """Holds back answers of 400 and up until they are whole, and rewrites those that have another shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        guard = _Guard(send)
        try:
            await self.app(scope, receive, guard)
        except ApiError as error:
            await guard.fail(error)
        except Exception as error:
            if isinstance(error.__cause__, ApiError):  # the framework's word for "too late to answer that"
                return await guard.fail(error.__cause__)
            logger.exception("request %s failed", info(scope).request_id)
            await guard.fail(bug(scope))


def bug(scope: Scope) -> ApiError:
    """What the client is told about an exception that nobody expected."""
    return ApiError(500, "internal_error", f"internal error; the log has it under {info(scope).request_id}")


class _Guard:
    """The `send` of one request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._body = bytearray()
        self._begun = self._stream = self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._held = message
                return
            self._begun = True
            self._stream = (header(message["headers"], b"content-type") or b"").startswith(b"text/event-stream")
        elif self._held is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body", False):
                return
            held, self._held, self._begun = self._held, None, True
            await self._answer(held)
            return
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _answer(self, held: Message) -> None:
        """Pass a well-shaped error on as it is; give every other one the shape."""
        self._ended = True
        parsed = _parse(bytes(self._body))
        error = parsed.get("error") if isinstance(parsed, dict) else None
        shaped = isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys()
        if shaped and held["status"] != 422:
            await self._send(held)
            await self._send({"type": "http.response.body", "body": bytes(self._body)})
            return
        status = 400 if held["status"] == 422 else held["status"]
        kept = {k.decode(): v.decode() for k, v in held["headers"] if k.lower().startswith(_KEPT)}
        param = error.get("param") if isinstance(error, dict) else None
        await ApiError(status, _code(status), _message(parsed, status), param, kept).send(self._send)

    async def fail(self, error: ApiError) -> None:
        """An exception came up: an answer if none has begun, an error event in a stream, silence otherwise."""
        if not self._begun:
            self._begun = self._ended = True
            await error.send(self._send)
        elif self._stream and not self._ended:
            self._ended = True
            await self._send({"type": "http.response.body", "body": error.event()})
        elif not self._ended:
            raise error


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace").strip() or None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP {status}"


def _code(status: int) -> str:
    return _phrase(status).lower().replace(" ", "_")


def _message(parsed: Any, status: int) -> str:
    """The most telling text of an error in some other shape."""
    found = parsed
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    if isinstance(found, str) and found:
        return found
    return _phrase(status) if found is None else json.dumps(found)
