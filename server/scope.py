"""What the layers tell each other about one request, kept in the ASGI scope."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from thriftree.plugins.engine.contract_var import Report
from thriftree.server.principal import ANYONE, Principal

if TYPE_CHECKING:
    from thriftree.server.body import Body

_KEY = "thriftree"


@dataclass(slots=True)
class RequestInfo:
    """One HTTP request: who, which route, its body, whether the client left early, and what the engine counted."""

    request_id: str
    route: str = "other"
    principal: Principal = ANYONE
    left: bool = False
    body: Body | None = None  # set by `body_limit`, for routes that have one
    prompt_tokens: int = 0  # as estimated or counted before the engine, for quota and admission
    report: Report = field(default_factory=Report)  # the engine's own counts, which grow while it answers
    arrived: float = field(default_factory=monotonic)

    @property
    def tenant(self) -> str:
        return self.principal.tenant


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
