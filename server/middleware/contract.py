"""The `thrift` object in, ``usage.thrift`` out.

The body is parsed here only if it holds the word, and goes on to vLLM as the bytes that came (vLLM ignores fields that
it does not know). The resolved contract travels in a context variable of the task that runs vLLM's handler.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.plugins.engine.contract_var import CURRENT, Report, RequestContract
from thriftree.plugins.kv_cache.request import whole
from thriftree.server import kv_room
from thriftree.server.body import amended
from thriftree.server.contract import Capabilities, method_of
from thriftree.server.metrics import Metrics
from thriftree.server.middleware.amend import Amender
from thriftree.server.permits import held_to, resolve_for
from thriftree.server.quota.prompt_tokens import PromptCounter
from thriftree.server.scope import info, path_of
from thriftree.server.usage import member

#: Route -> nesting depth of its streams' usage object; None: usage is not amended there.
ROUTES = {"/v1/chat/completions": 1, "/v1/completions": 1, "/v1/responses": 2, "/v1/messages": None}


class Contract:
    def __init__(
        self,
        app: ASGIApp,
        capabilities: Callable[[], Capabilities],
        metrics: Metrics,
        counter: Callable[[], PromptCounter | None] = lambda: None,
    ) -> None:
        """`counter` gives the prompt counter of the engine, once there is one."""
        self.app, self.capabilities, self.metrics, self.counter = app, capabilities, metrics, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or (path := path_of(scope)) not in ROUTES:
            return await self.app(scope, receive, send)
        request = info(scope)
        assert request.body is not None  # `body_limit` is above
        caps = request.principal.caps
        can = held_to(self.capabilities(), caps)
        thrift = resolve_for(await request.body.field("thrift"), can, caps)
        if can.kv.max_tokens is not None and whole(thrift["kv"]):
            scope = await amended(scope, request.body, await kv_room.members(request, can.kv, self.counter()))
        method = request.report.method = method_of(thrift)
        request.report.kv_method = method_of(thrift, "kv")
        most = request.principal.caps.max_visual_tokens
        contract = RequestContract(thrift, request.tenant, most, request.report)
        depth = ROUTES[path]
        if depth is not None:
            send = Amender(send, lambda: _addition(contract.report, method), depth)
        token = CURRENT.set(contract)
        self.metrics.answering[id(contract.report)] = contract.report
        try:
            await self.app(scope, receive, send)
        finally:
            CURRENT.reset(token)
            contract.close()
            self.metrics.count_report(contract.report, method, request.tenant)


def _addition(report: Report, method: str | None) -> bytes | None:
    """Nothing is added where nothing was counted (an engine without our client)."""
    return member(report, method) if report.steps else None
