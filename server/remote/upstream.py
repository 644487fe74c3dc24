"""One engine behind the gateway: where it is, how it is, what it has to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from yarl import URL

from thriftree.server.errors import StartError
from thriftree.server.metrics import Metrics
from thriftree.server.remote.breaker import Breaker

logger = logging.getLogger("thriftree.server")


class Upstream:
    """Mutable; `health` writes what it found, the proxy begins and ends requests."""

    def __init__(self, url: str, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        """Raises StartError: no URL of an engine."""
        try:
            parsed = URL(url)
            if not parsed.host or parsed.query_string or parsed.fragment:
                raise ValueError("expected http://host:port")
        except ValueError as error:
            raise StartError(f"--engine {url}: {error}") from None
        self.url = url
        self.name = str(parsed.with_user(None)).rstrip("/")  # in metrics and logs: without a password
        self.up = False
        self.why = "not asked yet"
        self.models: dict[str, Any] | None = None  # by id, as `/v1/models` tells them; None: it does not tell
        self.inflight = 0
        self.breaker = Breaker(clock)
        self._metrics = metrics
        self._watch(metrics)

    def _watch(self, metrics: Metrics) -> None:
        metrics.bound(metrics.upstream_up, self.name).set_function(lambda: float(self.up))
        metrics.bound(metrics.upstream_inflight, self.name).set_function(lambda: float(self.inflight))
        metrics.bound(metrics.upstream_breaker_open, self.name).set_function(
            lambda: float(self.breaker.state != "closed")
        )

    def serves(self, model: str | None) -> bool:
        return model is None or self.models is None or model in self.models

    def found(self, up: bool, why: str = "") -> None:
        """What a health check or a request says about it; changes are logged."""
        if up != self.up or (not up and why != self.why):
            logger.log(logging.INFO if up else logging.WARNING, "engine %s is %s", self.name, "up" if up else why)
        self.up, self.why = up, why

    def begin(self) -> Attempt:
        """One request to it, counted as in flight until `Attempt.end`."""
        self.inflight += 1
        return Attempt(self, self.breaker.begin())

    def count(self, outcome: str) -> None:
        self._metrics.bound(self._metrics.upstream_requests, self.name, outcome).inc()


#: Outcome -> whether it speaks for the engine, against it, or not at all. A 500 is about one request: an engine that
#: is well in all else must not be shut out by somebody's poisonous body.
OUTCOMES: dict[str, bool | None] = {
    "answered": True,
    "error": True,  # 5xx, passed on
    "draining": None,  # 502 or 503 with Retry-After: health says the rest
    "refused": False,  # no connection
    "reset": False,  # closed before the answer began
    "broken": False,  # closed in the middle of the answer
    "left": None,  # the client closed
}


class Attempt:
    """A request that is in flight at one engine."""

    __slots__ = ("_ended", "_ticket", "engine")

    def __init__(self, engine: Upstream, ticket: int) -> None:
        self.engine, self._ticket, self._ended = engine, ticket, False

    def end(self, outcome: str) -> None:
        """Once; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        engine, good = self.engine, OUTCOMES[outcome]
        engine.inflight -= 1
        engine.count(outcome)
        if good is None:
            engine.breaker.abandon(self._ticket)
        elif good:
            engine.breaker.succeed(self._ticket)
        else:
            engine.breaker.fail(self._ticket)
