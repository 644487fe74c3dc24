"""Polls every engine: is it serving, and which models. On connections of its own, which no load can exhaust."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from thriftree.server.remote.engines import Engines
from thriftree.server.remote.upstream import Upstream

_PATIENCE = 3  # checks in a row that may time out: a busy engine is slow, a dead one refuses
_NO_READY = (401, 403, 404, 405)  # of a server that has no `/ready` (stock vLLM) or keeps it to itself


class Health:
    def __init__(self, engines: Engines, key: str | None, seconds: float) -> None:
        """`seconds` between two checks of an engine, and for each of its answers (at least one)."""
        self._engines, self._seconds = engines, seconds
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._late: dict[str, int] = {}

    async def run(self, asked: asyncio.Event) -> None:
        """Until cancelled; sets `asked` when every engine was asked once."""
        timeout = aiohttp.ClientTimeout(total=max(1.0, self._seconds))
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            upstreams = list(self._engines.all.values())
            await asyncio.gather(*(self.check(session, upstream) for upstream in upstreams))
            asked.set()
            async with asyncio.TaskGroup() as group:
                for upstream in upstreams:
                    group.create_task(self._watch(session, upstream))

    async def _watch(self, session: aiohttp.ClientSession, upstream: Upstream) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self.check(session, upstream)

    async def check(self, session: aiohttp.ClientSession, upstream: Upstream) -> None:
        """Ask once, write down what was found."""
        try:
            upstream.found(*await self._ask(session, upstream))
            self._late[upstream.name] = 0
        except TimeoutError:
            self._late[upstream.name] = late = self._late.get(upstream.name, 0) + 1
            if late >= _PATIENCE or not upstream.up:
                upstream.found(False, "too slow to answer health checks")
        except Exception as error:  # whatever it is: the next check must come
            upstream.found(False, f"not reachable ({type(error).__name__}: {error})")
        self._engines.changed()

    async def _ask(self, session: aiohttp.ClientSession, upstream: Upstream) -> tuple[bool, str]:
        for path in ("/ready", "/health"):
            async with session.get(upstream.url + path, allow_redirects=False) as response:
                status = response.status
            if status not in _NO_READY:
                break
        if status != 200:
            return False, f"not serving ({path} answers {status})"
        upstream.models = await self._models(session, upstream)
        return True, ""

    async def _models(self, session: aiohttp.ClientSession, upstream: Upstream) -> dict[str, Any] | None:
        """By id; None where the engine does not tell: it gets requests for every model then."""
        async with session.get(f"{upstream.url}/v1/models", allow_redirects=False) as response:
            if response.status != 200:
                return None
            text = await response.read()
        try:
            return {str(model["id"]): model for model in json.loads(text)["data"]}
        except (ValueError, TypeError, KeyError):
            return None
