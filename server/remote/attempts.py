"""From a request to the first byte of its answer, at whichever engine gives one.

Another engine is tried only while nothing was answered, each at most once: after a connection that could not be made,
after an engine that says 502 or 503 with `Retry-After` (it drains), and once after a connection that closed before the
answer: the engine may have begun to work then, and a request that kills engines must not be handed to all of them.
Only where that was a kept connection and nobody else is there, the same engine is asked again, on a new one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import aiohttp

from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.remote.engines import Engines, no_engine
from thriftree.server.remote.outgoing import Outgoing
from thriftree.server.remote.pool import Kept, Pool
from thriftree.server.remote.upstream import Attempt, Upstream

logger = logging.getLogger("thriftree.server")
_DRAINING = (502, 503)


@dataclass(slots=True)
class _Search:
    """One request's way through the engines."""

    out: Outgoing
    tried: list[str] = field(default_factory=list)
    resets: int = 0


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why the next engine is to be asked, and what the client is told if there is none."""

    reason: str
    error: ApiError


Answered = tuple[Attempt, aiohttp.ClientResponse]


class Attempts:
    def __init__(self, engines: Engines, pool: Pool, metrics: Metrics) -> None:
        self._engines, self._pool, self._metrics = engines, pool, metrics

    async def first_answer(self, out: Outgoing) -> Answered:
        """The attempt is still in flight: end it when the answer has passed.

        Raises:
            ApiError: 404 unknown model; 503 no engine can be asked; 502 an engine failed and nobody else can be asked.
        """
        search = _Search(out)
        failed: _Failed | None = None
        while search.resets < 2 and (engine := self._engines.choose(out.model, out.key, search.tried)) is not None:
            if failed is not None:
                self._metrics.bound(self._metrics.upstream_retries, failed.reason).inc()
            search.tried.append(engine.name)
            found = await self._ask(engine, search)
            if not isinstance(found, _Failed):
                return found
            failed = found
        raise no_engine(1) if failed is None else failed.error

    async def _ask(self, engine: Upstream, search: _Search) -> Answered | _Failed:
        out, kept = search.out, Kept()
        attempt = engine.begin()
        try:
            response = await self._pool.request(out.method, engine.url + out.target, out.headers, out.body, kept)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return self._refused(attempt, error)
        except (aiohttp.ClientError, ConnectionError) as error:
            return self._reset(attempt, error, search, kept)
        except BaseException:
            attempt.end("left")
            raise
        reason = self._another(response, search)
        return (attempt, response) if reason is None else self._passed_over(attempt, response, reason)

    def _another(self, response: aiohttp.ClientResponse, search: _Search) -> str | None:
        """Why this answer is not the client's; None where it is, also because nobody else could give one."""
        if response.status in _DRAINING and "retry-after" in response.headers:
            reason = "draining"
        elif response.status == 404 and search.out.asks_all:
            reason = "not_found"
        else:
            return None
        return reason if self._engines.others(search.out.model, search.tried) else None

    def _passed_over(self, attempt: Attempt, response: aiohttp.ClientResponse, reason: str) -> _Failed:
        response.close()
        if reason == "draining":
            attempt.end("draining")
            attempt.engine.found(False, f"draining ({response.status})")  # until a health check finds otherwise
            self._engines.changed()
        else:
            attempt.end("answered")
        return _Failed(reason, no_engine(1))

    def _refused(self, attempt: Attempt, error: Exception) -> _Failed:
        engine = attempt.engine
        attempt.end("refused")
        logger.warning("engine %s: no connection (%s)", engine.name, error)
        if isinstance(getattr(error, "os_error", None), ConnectionRefusedError):
            engine.found(False, "refusing connections")  # until a health check finds otherwise
            self._engines.changed()
        return _Failed("refused", no_engine(1))

    def _reset(self, attempt: Attempt, error: Exception, search: _Search, kept: Kept) -> _Failed:
        engine = attempt.engine
        attempt.end("reset")
        search.resets += 1
        logger.warning("engine %s: no answer (%s: %s)", engine.name, type(error).__name__, error)
        if kept.reused and not self._engines.others(search.out.model, search.tried):
            search.tried.remove(engine.name)
        why = "the engine closed the connection before it answered"
        return _Failed("reset", ApiError(502, "engine_failed", why))
