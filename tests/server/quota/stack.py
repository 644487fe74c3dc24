"""The quota layer between the layers that it leans on, in front of an engine that counts what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.metrics import Metrics
from thriftree.server.middleware.body_limit import BodyLimit
from thriftree.server.middleware.errors import OneErrorShape
from thriftree.server.middleware.quota import TenantQuota
from thriftree.server.middleware.request_id import RequestId
from thriftree.server.middleware.routes import ClosedRoutes
from thriftree.server.principal import Principal, Quota
from thriftree.server.quota.limiter import Limiter
from thriftree.server.quota.memory import MemoryLimiter
from thriftree.server.quota.prompt_tokens import PromptCounter
from thriftree.server.scope import info

CHAT = "/v1/chat/completions"


async def hundred(route: str, body: dict[str, Any]) -> int:
    """A prompt counter."""
    return 100


class Engine:
    """Answers with `status`; counts `counted` (prompt, completion) first; then waits for `gate`, if there is one."""

    def __init__(self, status: int = 200, counted: tuple[int, int] = (0, 0)) -> None:
        self.status, self.counted = status, counted
        self.gate: asyncio.Event | None = None
        self.reached = 0
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        report = info(scope).report
        report.prompt_tokens, report.completion_tokens = self.counted
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            await self.gate.wait()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"detail":"no"}' if self.status >= 400 else b"{}"})


class Stack:
    """``Stack(engine, key=Quota(...)).app``"""

    def __init__(
        self,
        engine: ASGIApp,
        key: Quota | None = None,
        tenant: Quota | None = None,
        counter: PromptCounter | None = hundred,
        limiter: Limiter | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.now = 10**15
        self.limiter = MemoryLimiter(lambda: self.now) if limiter is None else limiter
        self.principal = Principal("acme", "k1", quota=key or Quota(), tenant_quota=tenant or Quota())
        layer = TenantQuota(engine, self.limiter, self.metrics, lambda: counter)
        app: ASGIApp = BodyLimit(self._known(layer), self.metrics, 1 << 20, 5)
        self.app: ASGIApp = RequestId(OneErrorShape(ClosedRoutes(app, ["/tokenize"])))

    def _known(self, app: ASGIApp) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        async def known(scope: Scope, receive: Receive, send: Send) -> None:
            info(scope).principal = self.principal
            await app(scope, receive, send)

        return known

    def rejected(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("thriftree_rejected_total", {"reason": reason}) or 0.0
