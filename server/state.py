"""What the gateway knows of itself: its phase, the engine's app once there is one, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.contract import Capabilities
from thriftree.server.engine_stats import DrafterStats, EngineStats, SelectionFailures
from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.quota.prompt_tokens import PromptCounter

#: no_engine: none of --engine is up; failed: the engine in this process died.
Phase = Literal["starting", "ready", "draining", "no_engine", "failed"]
_WHY = {
    "starting": "the model is still loading; try again soon",
    "draining": "the server is stopping",
    "failed": "the engine died; the server restarts",
    "no_engine": "no engine can take the request now; try again soon",
}


@dataclass
class GatewayState:
    """Mutable, one per process; changed only by the start-up and shut-down sequence."""

    phase: Phase = "starting"
    engine_app: ASGIApp | None = None
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(speculation=False))
    metrics: Metrics = field(default_factory=Metrics)
    drafter_stats: EngineStats = field(init=False)
    selection_failures: EngineStats = field(init=False)
    prompt_counter: PromptCounter | None = None  # once there is an engine with a tokenizer
    end_all: Callable[[ApiError], int] = lambda error: 0  # ends the requests that the engine works on; see `app`

    def __post_init__(self) -> None:
        self.drafter_stats = DrafterStats(self.metrics)
        self.selection_failures = SelectionFailures(self.metrics)
        self.metrics.ready.set_function(lambda: float(self.phase == "ready"))

    def require_ready(self) -> ASGIApp:
        """vLLM's app, or a 503 that says when to come back."""
        if self.phase == "ready" and self.engine_app is not None:
            return self.engine_app
        raise ApiError(503, self.phase, _WHY.get(self.phase, "not ready"), headers={"Retry-After": "5"})


class EngineMount:
    """What is mounted at the root before there is an engine: forwards to it once it is there."""

    def __init__(self, state: GatewayState) -> None:
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            app = self.state.require_ready()
        except ApiError as error:  # counted here and not for `/ready`: a probe is no request that was refused
            self.state.metrics.bound(self.state.metrics.rejected, error.code).inc()
            raise
        await app(scope, receive, send)
