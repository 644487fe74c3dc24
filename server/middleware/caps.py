"""Holds a request to the caps of its key. A body is read only where the key has caps that need it."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server import permits
from thriftree.server.body import amended
from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.middleware.contract import ROUTES as CONTRACT_ROUTES
from thriftree.server.permits_remote import check_thrift
from thriftree.server.principal import ANYONE, Caps
from thriftree.server.scope import RequestInfo, info

#: Caps on what a body asks for.
_ABOUT_BODIES = ("max_tokens", "profiles", "methods", "max_kv_budget", "max_visual_tokens")
#: A letter of "priority" written as an escape. (NULs: the body is not UTF-8. In both cases only the parser can tell.)
_ESCAPED = re.compile(rb"\\u00[67]")


class KeyCaps:
    def __init__(self, app: ASGIApp, metrics: Metrics, remote: bool = False) -> None:
        """`remote`: the `contract` layer is not below, for the engine is another server."""
        self.app, self.metrics, self.remote = app, metrics, remote

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = info(scope)
        if request.principal is ANYONE:
            return await self.app(scope, receive, send)
        caps = request.principal.caps
        if request.route == "/v1/models" and scope["method"] == "GET" and caps.models is not None:
            send = _OnlyModels(send, caps.models)
        elif request.body is not None and scope["method"] != "OPTIONS":
            try:
                scope = await _held(scope, request, caps, self.remote)
            except ApiError as error:
                if error.status == 403:
                    self.metrics.bound(self.metrics.rejected, error.code).inc()
                raise
        await self.app(scope, receive, send)


async def _held(scope: Scope, request: RequestInfo, caps: Caps, remote: bool) -> Scope:
    """The scope of a request that keeps to the caps: its body may have been amended, and its length with it."""
    route = permits.ROUTES.get(request.route)
    if _beyond(request.route, route, caps, remote):
        _refuse_unknown(request.route, caps)
    thrifty = remote and (caps.profiles, caps.methods) != (None, None) and request.route in CONTRACT_ROUTES
    body = await _object(request, route, caps, thrifty)
    if caps.models is not None and (route is None or route.model):
        permits.check_model(body, caps)
    missing: dict[str, Any] = check_thrift(body, caps) if thrifty else {}
    if caps.max_tokens is not None and route is not None and route.limits:
        missing |= permits.check_tokens(body, route, caps.max_tokens)
    claims = [value for name, value in scope["headers"] if name == permits.PRIORITY_HEADER]
    missing |= permits.check_priority(body, route or permits.Route(), claims, caps)
    assert request.body is not None
    return await amended(scope, request.body, missing)


def _beyond(name: str, route: permits.Route | None, caps: Caps, remote: bool) -> bool:
    """Whether there may be caps that cannot be held there: only an engine here counts images and caches, and only for
    answers that it generates."""
    if route is None:
        return True
    if name in CONTRACT_ROUTES:
        return remote and (caps.max_kv_budget, caps.max_visual_tokens) != (None, None)
    return route.priority and caps.max_visual_tokens is not None


def _refuse_unknown(route: str, caps: Caps) -> None:
    """Where the body is not understood, caps on what it asks cannot be held."""
    needed = [name for name in _ABOUT_BODIES if getattr(caps, name) is not None]
    if needed:
        why = f"this key has caps ({', '.join(needed)}) that cannot be held on {route}, so it may not use it"
        raise ApiError(403, "route_not_allowed", why)


async def _object(request: RequestInfo, route: permits.Route | None, caps: Caps, thrifty: bool) -> dict[str, Any]:
    """The body, if the caps need it. Raises ApiError where they do and it is no object: nothing slips through."""
    assert request.body is not None
    needed = (
        thrifty
        or (caps.models is not None and (route is None or route.model))
        or (caps.max_tokens is not None and route is not None and bool(route.limits))
        or (caps.priority > 0 and route is not None and route.priority)
    )
    if not needed:
        data = await request.body.read()
        if b'"priority"' not in data and b"\x00" not in data and not _ESCAPED.search(data):
            return {}  # the header is still to be looked at
    parsed = await request.body.parsed()
    if isinstance(parsed, dict):
        return parsed
    if needed:
        raise ApiError(400, "invalid_json", "the body must be a JSON object: this key has caps to hold it to")
    return {}


class _OnlyModels:
    """The `send` of a list of models, which shows a key those that it may use."""

    def __init__(self, send: Send, allowed: tuple[str, ...]) -> None:
        self._send, self._allowed = send, allowed
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self._start = message
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)
        else:
            await self._send(message)

    async def _answer(self, start: Message) -> None:
        listed = json.loads(self._body)
        listed["data"] = [model for model in listed["data"] if model["id"] in self._allowed]
        body = json.dumps(listed, ensure_ascii=False, separators=(",", ":")).encode()
        others = [pair for pair in start["headers"] if pair[0] != b"content-length"]
        await self._send({**start, "headers": [*others, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})
