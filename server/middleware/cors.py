"""Cross-origin access for browsers. Outside of the layers that refuse, so that their answers can be read there too."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from thriftree.server.errors import ApiError

_READABLE = (
    "x-request-id",
    "retry-after",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)


class Cors(CORSMiddleware):
    """Starlette's, with our error shape, and with our headers readable for scripts."""

    def __init__(
        self,
        app: ASGIApp,
        origins: Collection[str],
        methods: Collection[str],
        headers: Collection[str],
        credentials: bool,
    ) -> None:
        super().__init__(app, origins, methods, headers, credentials, expose_headers=_READABLE)

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        body = ApiError(400, "cors_refused", bytes(answer.body).decode()).body()
        kept = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return Response(body, 400, kept, "application/json")
