"""The drafters' own numbers, asked of the engine when metrics are scraped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from thriftree.server.metrics import Metrics

logger = logging.getLogger("thriftree.server")
_EVERY_SECONDS = 5.0
_PATIENCE_SECONDS = 2.0  # the engine answers between two steps; a scrape must not wait for a stuck one

Rpc = Callable[[str], Awaitable[list[Any]]]


class DrafterStats:
    """Keeps the gauges fresh at a bounded cost: each sample interrupts the engine for one call."""

    def __init__(self, metrics: Metrics) -> None:
        self.rpc: Rpc | None = None  # set once there is an engine with trees
        self._metrics = metrics
        self._next = 0.0

    async def sample(self) -> None:
        """Ask, unless somebody just did; an engine that does not know the call is not asked again."""
        if self.rpc is None or monotonic() < self._next:
            return
        self._next = monotonic() + _EVERY_SECONDS
        try:
            workers = await asyncio.wait_for(self.rpc("thrift_stats"), _PATIENCE_SECONDS)
        except TimeoutError:
            return
        except Exception as error:
            logger.info("no drafter statistics: %s", error)
            self.rpc = None
            return
        self._metrics.drafter_state_bytes.set(sum(stats["state_bytes"] for stats in workers))
