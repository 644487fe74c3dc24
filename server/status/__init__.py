"""The status page at `/`: one page, one script, one style, one JSON route. No build step, nothing from elsewhere."""

from __future__ import annotations

import html
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response

from thriftree.server.state import GatewayState
from thriftree.server.status.counts import Counts

#: What the page is made of; it holds nothing secret, so no key is asked for it.
PAGE = ("/", "/status.js", "/status.css", "/status.svg")
#: What it shows: needs a key where keys are configured.
DATA = "/status.json"

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def status_routes(state: GatewayState) -> APIRouter:
    """The page, its parts and its data."""
    routes = APIRouter()
    counts = Counts(state)

    @routes.api_route("/", methods=["GET", "HEAD"], summary="The status page, for people")
    async def page(request: Request) -> Response:
        text = _part("index.html")
        if root := request.scope.get("root_path", ""):  # the page may have been asked for without its last slash
            text = text.replace("<head>", f'<head>\n<base href="{html.escape(root.rstrip("/"))}/">', 1)
        return Response(text, media_type="text/html", headers=_HEADERS)

    @routes.get("/status.{kind}", summary="The page's parts, and as .json the state and counts that it shows")
    async def part(kind: str) -> Any:
        if kind == "json":
            return counts.now()
        if kind not in _KINDS:
            return Response(status_code=404)
        return Response(_part(f"status.{kind}"), media_type=_KINDS[kind], headers=_HEADERS)

    return routes


def _part(name: str) -> str:
    return (files(__package__) / name).read_text()
