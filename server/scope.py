"""What the layers tell each other about one request, kept in the ASGI scope."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

_KEY = "thriftree"


@dataclass(slots=True)
class RequestInfo:
    """One HTTP request: who, which route, and whether the client left early."""

    request_id: str
    route: str = "other"
    tenant: str = "default"
    left: bool = False


def info(scope: Scope) -> RequestInfo:
    """The request's info; the outermost layer put it there."""
    found: RequestInfo = scope[_KEY]
    return found


def set_info(scope: Scope, value: RequestInfo) -> None:
    scope[_KEY] = value


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def path_of(scope: Scope) -> str:
    path: Any = scope["path"]
    return str(path)
