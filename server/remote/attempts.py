"""From a request to the first byte of its answer, at whichever engine gives one.

Another engine is tried only while nothing was answered, each at most once: after a connection that could not be made,
after an engine that says 502 or 503 with `Retry-After` (it drains), and once after a connection that closed before the
answer: the engine may have begun to work then, and a request that kills engines must not be handed to all of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from time import monotonic

import aiohttp

from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.remote.engines import Engines, no_engine
from thriftree.server.remote.outgoing import Outgoing
from thriftree.server.remote.pool import Pool
from thriftree.server.remote.upstream import Attempt, Upstream

logger = logging.getLogger("thriftree.server")
_DRAINING = (502, 503)
_STALE_SECONDS = 0.5  # a kept connection that had died says so at once


@dataclass(slots=True)
class Search:
    """One request's way through the engines."""

    out: Outgoing
    tried: list[str] = field(default_factory=list)
    resets: int = 0


class Attempts:
    def __init__(self, engines: Engines, pool: Pool, metrics: Metrics) -> None:
        self._engines, self._pool, self._metrics = engines, pool, metrics

    async def first_answer(self, out: Outgoing) -> tuple[Attempt, aiohttp.ClientResponse]:
        """The attempt is still in flight: end it when the answer has passed.

        Raises:
            ApiError: 404 unknown model; 503 no engine can be asked; 502 an engine failed and nobody else can be asked.
        """
        search, failed = Search(out), no_engine(1)
        while (engine := self._engines.choose(out.model, out.key, search.tried)) is not None:
            search.tried.append(engine.name)
            found = await self._ask(engine, search)
            if isinstance(found, ApiError):
                failed = found
                if search.resets > 1:
                    break
                continue
            return found
        raise failed

    async def _ask(self, engine: Upstream, search: Search) -> tuple[Attempt, aiohttp.ClientResponse] | ApiError:
        """An answer to pass on, or why the next engine is to be asked."""
        out, begun = search.out, monotonic()
        attempt = engine.begin()
        try:
            response = await self._pool.request(out.method, engine.url + out.target, out.headers, out.body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return self._refused(engine, attempt, error)
        except (aiohttp.ClientError, ConnectionError) as error:
            return self._reset(engine, attempt, error, search, monotonic() - begun)
        except BaseException:
            attempt.end("left")
            raise
        reason = self._another(response, search)
        if reason is None:
            return attempt, response
        response.close()
        attempt.end("draining" if reason == "draining" else "answered")
        if reason == "draining":
            engine.found(False, f"draining ({response.status})")
            self._engines.changed()
        self._retry(reason)
        return no_engine(1)

    def _another(self, response: aiohttp.ClientResponse, search: Search) -> str | None:
        """Why this answer is not the client's; None where nobody else could give one, too."""
        if response.status in _DRAINING and "retry-after" in response.headers:
            reason = "draining"
        elif response.status == 404 and search.out.asks_all:
            reason = "not_found"
        else:
            return None
        return reason if self._engines.others(search.out.model, search.tried) else None

    def _refused(self, engine: Upstream, attempt: Attempt, error: Exception) -> ApiError:
        attempt.end("refused")
        if isinstance(getattr(error, "os_error", None), ConnectionRefusedError):
            engine.found(False, "refusing connections")  # until a health check finds otherwise
            self._engines.changed()
        logger.warning("engine %s: no connection (%s)", engine.name, error)
        self._retry("refused")
        return no_engine(1)

    def _reset(self, engine: Upstream, attempt: Attempt, error: Exception, search: Search, seconds: float) -> ApiError:
        attempt.end("reset")
        search.resets += 1
        logger.warning("engine %s: no answer (%s: %s)", engine.name, type(error).__name__, error)
        if seconds < _STALE_SECONDS and not self._engines.others(search.out.model, search.tried):
            search.tried.remove(engine.name)
        self._retry("reset")
        return ApiError(502, "engine_failed", "the engine closed the connection before it answered")

    def _retry(self, reason: str) -> None:
        self._metrics.bound(self._metrics.upstream_retries, reason).inc()
