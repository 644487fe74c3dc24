"""Our own routes. Everything else is vLLM's."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from thriftree.server.methods import table
from thriftree.server.state import GatewayState
from thriftree.server.status import status_routes


def router(state: GatewayState, methods: bool = True) -> APIRouter:
    """Health, readiness, metrics and, unless `methods` are those of engines elsewhere, the method table."""
    routes = APIRouter()
    routes.include_router(status_routes(state))

    @routes.get("/health", summary="Alive: answers from the first second on")
    async def health() -> dict[str, str]:
        return {"status": "ok", "phase": state.phase}

    @routes.get("/ready", summary="Serving: 503 until a real request has run, and while draining")
    async def ready() -> JSONResponse:
        state.require_ready()
        return JSONResponse({"status": "ready"})

    @routes.get("/metrics", summary="Prometheus text: thriftree_* and vllm:*")
    async def metrics() -> Response:
        await asyncio.gather(state.drafter_stats.sample(), state.selection_failures.sample())
        return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def method_table() -> dict[str, Any]:
        return {"object": "list", "methods": table(state.capabilities)}

    if methods:
        summary = "Methods, and which of them this server has"
        routes.add_api_route("/v1/thrift/methods", method_table, methods=["GET"], summary=summary)
    return routes
