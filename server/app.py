"""The gateway: our routes and vLLM's app under a stack of pure ASGI layers (`middleware` lists them in order)."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.edge import Edge
from thriftree.server.errors import ApiError
from thriftree.server.middleware.access_log import AccessLog
from thriftree.server.middleware.admission import Admission
from thriftree.server.middleware.auth import Auth
from thriftree.server.middleware.body_limit import BodyLimit
from thriftree.server.middleware.caps import KeyCaps
from thriftree.server.middleware.contract import Contract
from thriftree.server.middleware.deadline import Deadline
from thriftree.server.middleware.errors import OneErrorShape, bug
from thriftree.server.middleware.metrics import CountRequests
from thriftree.server.middleware.quota import TenantQuota
from thriftree.server.middleware.request_id import RequestId
from thriftree.server.middleware.routes import ClosedRoutes
from thriftree.server.parts import Parts
from thriftree.server.routes import router
from thriftree.server.settings import Settings
from thriftree.server.state import EngineMount, GatewayState
from thriftree.server.status import PAGE


def build(settings: Settings, state: GatewayState, parts: Parts | None = None, edge: Edge | None = None) -> ASGIApp:
    """The whole gateway as one ASGI app; serves from the first moment, the engine's routes as soon as it is loaded."""
    parts = parts or Parts.open(settings, state.metrics)
    metrics, limits = state.metrics, settings.limits
    app = _core(settings, state)
    if not settings.engine:  # engines elsewhere resolve the contract, and may know methods that we do not
        app = Contract(app, lambda: state.capabilities, metrics, lambda: state.prompt_counter)
    app = deadline = Deadline(app, metrics, settings.deadlines)
    state.end_all = deadline.end_all
    app = Admission(app, parts.gate, metrics, settings.deadlines)
    app = TenantQuota(app, parts.limiter, metrics, lambda: state.prompt_counter)
    app = KeyCaps(app, metrics, remote=bool(settings.engine))
    app = Auth(app, metrics, parts.keyring, (*settings.auth.open_routes, *PAGE))
    app = BodyLimit(app, metrics, limits.max_body_bytes, limits.body_seconds, limits.max_body_values)
    app = ClosedRoutes(app, settings.routes.allow)
    app = OneErrorShape(app)
    app = CountRequests(app, metrics)
    if parts.lines is not None:
        app = AccessLog(app, parts.lines)
    return RequestId((edge or Edge()).around(app))


def _core(settings: Settings, state: GatewayState) -> ASGIApp:
    core = FastAPI(title="thriftree", docs_url=None, redoc_url=None, openapi_url=None)
    core.add_exception_handler(ApiError, _answer)
    core.add_exception_handler(Exception, _answer)  # and raised again, for `OneErrorShape` to log
    core.include_router(router(state, methods=not settings.engine))
    engine = EngineMount(state)
    core.mount("/", engine)
    return _Fork(core, engine)


class _Fork:
    """None of our own routes takes a POST: that is the engine's, whose app has a router too. Ours would cost 40 us."""

    def __init__(self, core: ASGIApp, engine: ASGIApp) -> None:
        self.core, self.engine = core, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.engine if scope["type"] == "http" and scope["method"] == "POST" else self.core
        await app(scope, receive, send)


async def _answer(request: Request, error: Exception) -> Response:
    """Errors that come up through our own FastAPI, before the framework words them."""
    if not isinstance(error, ApiError):
        error = bug(request.scope)
    return Response(error.body(), error.status, error.headers, "application/json")
