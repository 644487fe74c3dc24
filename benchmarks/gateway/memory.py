"""What stays in memory: after many requests, and while many streams are open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from thriftree.benchmarks.gateway.http import Connection, Failed, chat, expect
from thriftree.benchmarks.gateway.servers import Server

_LANES = 16
_WARM = 1000
_OPEN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of the server's process."""

    name: str
    begin: int  # after the warm-up
    end: int  # after `requests` more
    requests: int
    streams: int
    per_stream: float


async def measure(servers: Mapping[str, Server], requests: int, streams: int) -> list[Memory]:
    """Three whole answers to one stream, prompts of 1 and 8 kB; then the open streams."""
    return [await _one(server, requests, streams) for server in servers.values()]


async def _one(server: Server, requests: int, streams: int) -> Memory:
    await server.set(first=0.0, rate=0.0)
    await _ask(server, min(_WARM, requests))
    begin = server.rss()
    await _ask(server, requests)
    end = server.rss()
    return Memory(server.name, begin, end, requests, streams, await _open(server, streams))


async def _ask(server: Server, requests: int) -> None:
    work = [chat(size, 8, stream) for size in (1000, 8000) for stream in (False, False, False, True)]
    connections = [await Connection.to(server.port) for _ in range(_LANES)]
    left = iter(range(requests))

    async def one(connection: Connection) -> None:
        for i in left:
            await expect(connection, work[i % len(work)])

    await asyncio.gather(*map(one, connections))
    for connection in connections:
        connection.leave()


async def _open(server: Server, streams: int) -> float:
    """Bytes for each of so many streams that have begun and go on."""
    await server.set(rate=4.0)
    before = server.rss()
    connections = [await Connection.to(server.port) for _ in range(streams)]
    data = chat(1000, 100_000, True)
    tasks = [asyncio.create_task(connection.ask(data)) for connection in connections]
    await asyncio.sleep(_OPEN_SECONDS)
    running = (await server.counts())["running"]
    grown = server.rss() - before
    for connection in connections:
        connection.leave()
    await asyncio.gather(*tasks, return_exceptions=True)
    if running != streams:
        raise Failed(f"{server.name}: {running} of {streams} streams were open")
    return grown / streams
