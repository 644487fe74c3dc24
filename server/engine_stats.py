"""Numbers that only the engine's workers have, asked of them when metrics are scraped."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, ClassVar

from thriftree.plugins.vision import registry
from thriftree.server.metrics import Metrics

logger = logging.getLogger("thriftree.server")
_EVERY_SECONDS = 5.0
_PATIENCE_SECONDS = 2.0  # the engine answers between two steps; a scrape must not wait for a stuck one

Rpc = Callable[[str], Awaitable[list[Any]]]


class EngineStats(ABC):
    """Keeps metrics fresh at a bounded cost: each sample interrupts the engine for one call."""

    call: ClassVar[str]  # the worker's method

    def __init__(self, metrics: Metrics) -> None:
        self.rpc: Rpc | None = None  # set once there is an engine that has the numbers
        self._metrics = metrics
        self._next = 0.0

    async def sample(self) -> None:
        """Ask, unless somebody just did; an engine that does not know the call is not asked again."""
        if self.rpc is None or monotonic() < self._next:
            return
        self._next = monotonic() + _EVERY_SECONDS
        try:
            workers = await asyncio.wait_for(self.rpc(self.call), _PATIENCE_SECONDS)
        except TimeoutError:
            return
        except Exception as error:
            logger.info("no %s: %s", self.call, error)
            self.rpc = None
            return
        self.take(workers)

    @abstractmethod
    def take(self, workers: list[Any]) -> None:
        """What each worker answered."""


class DrafterStats(EngineStats):
    """Memory of the drafters, of all workers together."""

    call = "thrift_stats"

    def take(self, workers: list[Any]) -> None:
        self._metrics.drafter_state_bytes.set(sum(stats["state_bytes"] for stats in workers))


class SelectionFailures(EngineStats):
    """Images whose method raised. Ranks work on the same images, so the highest of their counts is taken."""

    call = "__thrift_vision_failures__"

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self._known: dict[str, int] = {}

    def take(self, workers: list[Any]) -> None:
        for method in registry.names():  # those that never failed too: what begins with 1 has not risen
            failures = self._metrics.bound(self._metrics.visual_selection_failures, method)
            count = max(counts.get(method, 0) for counts in workers)
            new = count - self._known.get(method, 0)
            if new > 0:
                self._known[method] = count
                failures.inc(new)
