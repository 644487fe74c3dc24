"""Closed by default: only routes on the list exist. vLLM opens several that its own key check does not guard."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.errors import ApiError
from thriftree.server.scope import info, path_of

#: Ours, and the inference API of vLLM. ``{x}`` stands for one path segment.
OPEN = (
    "/",
    "/status.js",
    "/status.css",
    "/status.svg",
    "/status.json",
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/v1/thrift/methods",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/{id}",
    "/v1/responses/{id}/cancel",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
)


class ClosedRoutes:
    """404 for everything that is not open; names the route for the layers above."""

    def __init__(self, app: ASGIApp, allow: Iterable[str] = ()) -> None:
        self.app = app
        routes = (*OPEN, *allow)
        self._exact = {route: route for route in routes if "{" not in route}
        self._patterns = [(_pattern(route), route) for route in routes if "{" in route]

    def route_of(self, path: str) -> str | None:
        """The open route that `path` falls under."""
        if path in self._exact:
            return path
        return next((route for pattern, route in self._patterns if pattern.fullmatch(path)), None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        route = self.route_of(path_of(scope))
        if scope["type"] != "http":  # a web socket
            if route is None:
                return await send({"type": "websocket.close", "code": 4404, "reason": "unknown route"})
        elif route is None:
            raise ApiError(404, "route_not_found", f"unknown route {scope['method']} {path_of(scope)}")
        else:
            info(scope).route = route
        await self.app(scope, receive, send)


def _pattern(route: str) -> re.Pattern[str]:
    parts = re.split(r"\{[^}]*\}", route)
    return re.compile("[^/]+".join(map(re.escape, parts)))
