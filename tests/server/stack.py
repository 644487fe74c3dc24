"""The layers around the engine that admission and deadlines need, in front of any app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.admission.gate import Gate
from thriftree.server.methods import capabilities
from thriftree.server.metrics import Metrics
from thriftree.server.middleware.admission import Admission
from thriftree.server.middleware.body_limit import BodyLimit
from thriftree.server.middleware.contract import Contract
from thriftree.server.middleware.deadline import Deadline
from thriftree.server.middleware.errors import OneErrorShape
from thriftree.server.middleware.metrics import CountRequests
from thriftree.server.middleware.request_id import RequestId
from thriftree.server.middleware.routes import ClosedRoutes
from thriftree.server.principal import Principal
from thriftree.server.scope import header, info
from thriftree.server.sections import Deadlines

NO_LIMITS = Deadlines(queue=0, first_token=0, between_tokens=0, total=0)


class WhoAsks:
    """Stands in for the keys: the tenant of a request is its header `x-tenant`."""

    def __init__(self, app: ASGIApp, known: Callable[[str], Principal]) -> None:
        self.app, self.known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        info(scope).principal = self.known((header(scope["headers"], b"x-tenant") or b"default").decode())
        await self.app(scope, receive, send)


@dataclass
class Stack:
    """``Stack(engine, Gate(...), Deadlines(...))``; an ASGI app itself."""

    engine: ASGIApp
    gate: Gate
    limits: Deadlines = field(default_factory=lambda: NO_LIMITS)
    known: Callable[[str], Principal] = lambda name: Principal(tenant=name)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        can = capabilities(True, "auto", 16)
        app: ASGIApp = Contract(self.engine, lambda: can, self.metrics)
        app = self.deadline = Deadline(app, self.metrics, self.limits)
        app = Admission(app, self.gate, self.metrics, self.limits)
        app = WhoAsks(app, self.known)
        app = BodyLimit(app, self.metrics, 1 << 20, 5)
        app = OneErrorShape(ClosedRoutes(app))
        self.app = RequestId(CountRequests(app, self.metrics))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def metric(self, line: str) -> float:
        """The value behind a line's beginning; 0 where it is not there."""
        rows = self.metrics.render().decode().splitlines()
        return next((float(row.rsplit(" ", 1)[1]) for row in rows if row.startswith(line + " ")), 0.0)
