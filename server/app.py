"""The gateway: our routes and vLLM's app under a stack of pure ASGI layers (`middleware` lists them in order)."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from thriftree.server.errors import ApiError
from thriftree.server.middleware.body_limit import BodyLimit
from thriftree.server.middleware.contract import Contract
from thriftree.server.middleware.errors import OneErrorShape, bug
from thriftree.server.middleware.metrics import CountRequests
from thriftree.server.middleware.request_id import RequestId
from thriftree.server.middleware.routes import ClosedRoutes
from thriftree.server.routes import router
from thriftree.server.settings import Settings
from thriftree.server.state import EngineMount, GatewayState


def build(settings: Settings, state: GatewayState) -> ASGIApp:
    """The whole gateway as one ASGI app; serves from the first moment, the engine's routes as soon as it is loaded."""
    core = FastAPI(title="thriftree", docs_url=None, redoc_url=None, openapi_url=None)
    core.add_exception_handler(ApiError, _answer)
    core.add_exception_handler(Exception, _answer)  # and raised again, for `OneErrorShape` to log
    core.include_router(router(state, methods=not settings.engine))
    core.mount("/", EngineMount(state))
    app: ASGIApp = core
    if not settings.engine:  # engines elsewhere resolve the contract, and may know methods that we do not
        app = Contract(app, lambda: state.capabilities, state.metrics)
    limits = settings.limits
    app = BodyLimit(app, state.metrics, limits.max_body_bytes, limits.body_seconds)
    app = ClosedRoutes(app, settings.routes.allow)
    app = OneErrorShape(app)
    app = CountRequests(app, state.metrics)
    return RequestId(app)


async def _answer(request: Request, error: Exception) -> Response:
    """Errors that come up through our own FastAPI, before the framework words them."""
    if not isinstance(error, ApiError):
        error = bug(request.scope)
    return Response(error.body(), error.status, error.headers, "application/json")
