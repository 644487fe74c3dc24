"""A client's request as it goes to an engine, and what chooses the engine."""

from __future__ import annotations

from dataclasses import dataclass

from multidict import CIMultiDict
from starlette.types import Scope

from thriftree.server.remote.headers import forwarded
from thriftree.server.remote.prefix import prefix_key
from thriftree.server.scope import info


@dataclass(frozen=True, slots=True)
class Outgoing:
    method: str
    target: str  # path and query, as the client wrote them
    headers: CIMultiDict[str]
    body: bytes | None
    model: str | None
    key: bytes | None  # what the prompt begins with
    asks_all: bool  # what one engine does not know (404) another one may


async def outgoing(scope: Scope, remote_key: str | None, prefix_bytes: int) -> Outgoing:
    """Reads the body. Raises what `Body.read` raises."""
    request = info(scope)
    headers = forwarded(scope["headers"], remote_key)
    body = parsed = None
    if request.body is not None:
        body, parsed = await request.body.read(), await request.body.parsed()
    named = parsed.get("model") if isinstance(parsed, dict) else None
    model = named if isinstance(named, str) else None
    return Outgoing(
        method=scope["method"],
        target=_target(scope),
        headers=headers,
        body=body,
        model=model,
        key=prefix_key(parsed, prefix_bytes),
        # A stored response is where it was made; a form's model is not read; of mixed engines some lack a route.
        asks_all=model is None or request.route.startswith("/v1/responses"),
    )


def _target(scope: Scope) -> str:
    """Path and query without the prefix under which a front proxy shows this gateway (`--root-path`)."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    root = str(scope.get("root_path", "")).encode()
    path = raw.removeprefix(root) if root and raw.startswith(root + b"/") else raw
    query: bytes = scope.get("query_string", b"")
    return (path + b"?" + query if query else path).decode("latin-1")
