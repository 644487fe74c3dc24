"""Connections to the engines: kept open, without limits of time (deadlines are another layer's), bytes as they are."""

from __future__ import annotations

import io
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

#: Below uvicorn's 5 s, so that it is us who close an idle connection: a request would be lost on one that the engine
#: closes at the same moment.
_IDLE_SECONDS = 4.0
_COPIED_BYTES = 1 << 20  # a larger body goes out piece by piece, so that other requests have their turn
_OURS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # what aiohttp would add by itself


class Kept:
    """Whether a request went out on a connection that had been used before: the engine may have closed it meanwhile."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


async def _note_reuse(session: Any, context: SimpleNamespace, parameters: Any) -> None:
    context.trace_request_ctx.reused = True


class Pool:
    """``async with Pool(...) as pool: response = await pool.request(...)``"""

    def __init__(self, connect_seconds: float, max_connections: int) -> None:
        """`max_connections`: to one engine; further requests wait for one."""
        self._connect_seconds, self._max_connections = connect_seconds, max_connections

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=self._max_connections, keepalive_timeout=_IDLE_SECONDS, ttl_dns_cache=10
        )
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            trace_configs=[trace],
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),  # nobody gets another client's cookies
            skip_auto_headers=_OURS,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def request(
        self, method: str, url: str, headers: CIMultiDict[str], body: bytes | None, kept: Kept
    ) -> aiohttp.ClientResponse:
        """An answer's status and headers; its body is still to be read. Close it, or read it to its end.

        Raises:
            aiohttp.ClientError: there is none.
        """
        data = io.BytesIO(body) if body is not None and len(body) > _COPIED_BYTES else body
        return await self._session.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=data,
            allow_redirects=False,
            trace_request_ctx=kept,
        )
