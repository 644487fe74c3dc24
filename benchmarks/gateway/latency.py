"""What stands in front of an engine costs: seconds per request, CPU per request, CPU per streamed chunk.

Contenders take turns: request by request at concurrency 1, burst by burst above. "Added" is to the bare engine in the
same turns.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from thriftree.benchmarks.gateway.http import Connection, Failed, chat, expect
from thriftree.benchmarks.gateway.servers import Server
from thriftree.benchmarks.stats import percentile

TOKENS = 16
HOLD = 0.2  # seconds that the engine takes for an answer where many are in flight: else only throughput is measured
_STREAMS, _RATE = 8, 100.0  # streams at once and their tokens per second, for the CPU of a chunk
_LANES, _EACH = 16, 25  # connections and requests of each, for the CPU of a request


@dataclass(frozen=True, slots=True)
class Cell:
    """What is asked; `stream`: the time to its first chunk is measured, else that to the last byte."""

    stream: bool
    size: int  # bytes of the prompt
    concurrency: int

    @property
    def title(self) -> str:
        what = "stream, first chunk" if self.stream else "whole answer"
        return f"{what}, prompt of {self.size // 1000} kB, {self.concurrency} in flight"


CELLS = tuple(Cell(stream, size, lanes) for lanes in (1, 32) for stream in (False, True) for size in (1000, 8000))


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds; `paired`: p99 of the differences request by request, which only turns of single requests have."""

    cell: Cell
    name: str
    count: int
    p50: float
    p99: float
    added_p50: float
    added_p99: float
    paired_p99: float | None


class Lost(Failed):
    """A contender that did not answer."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


Seconds = dict[str, list[float]]


async def measure(servers: Mapping[str, Server], cell: Cell, rounds: int, seed: int) -> list[Row]:
    """All contenders on one cell. Raises Failed."""
    hold = HOLD if cell.concurrency > 1 else 0.0
    for server in servers.values():
        await server.set(first=hold, rate=0.0)
    lanes = {name: [await Connection.to(one.port) for _ in range(cell.concurrency)] for name, one in servers.items()}
    data = chat(cell.size, TOKENS, cell.stream)
    draw = random.Random(seed)
    try:
        for connections in lanes.values():  # warm
            await _burst(connections, data, cell.stream, 0.0, draw)
        found: Seconds = defaultdict(list)
        for i in range(rounds):
            for name in _turn(list(servers), i):
                try:
                    found[name] += await _burst(lanes[name], data, cell.stream, hold, draw)
                except Failed as error:
                    raise Lost(name, f"{name}, {cell.title}: {error}") from None
    finally:
        for connections in lanes.values():
            for connection in connections:
                connection.leave()
    return [_row(cell, name, found) for name in servers]


def _turn(names: Sequence[str], i: int) -> list[str]:
    """Everybody once, beginning with another one each time."""
    return [*names[i % len(names) :], *names[: i % len(names)]]


async def _burst(
    connections: Sequence[Connection], data: bytes, stream: bool, spread: float, draw: random.Random
) -> list[float]:
    """A request on each connection, begun at random moments within `spread` seconds."""

    async def one(connection: Connection) -> float:
        if spread:
            await asyncio.sleep(draw.random() * spread)
        reply = await expect(connection, data)
        return reply.first if stream else reply.seconds

    if len(connections) == 1:
        return [await one(connections[0])]
    return await asyncio.gather(*(one(connection) for connection in connections))


def _row(cell: Cell, name: str, found: Seconds) -> Row:
    mine, bare = found[name], found["bare"]
    p50, p99 = percentile(mine, 0.5), percentile(mine, 0.99)
    paired = [a - b for a, b in zip(mine, bare, strict=True)] if cell.concurrency == 1 else None
    return Row(
        cell, name, len(mine), p50, p99, p50 - percentile(bare, 0.5), p99 - percentile(bare, 0.99),
        percentile(paired, 0.99) if paired is not None else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU of all processes that a request passes; medians over turns."""

    name: str
    request: float
    chunk: float
    added_request: float
    added_chunk: float


async def cpu(servers: Mapping[str, Server], rounds: int, tokens: int) -> list[Cpu]:
    """Per request: whole answers, prompts of 1 kB. Per chunk: streams of so many tokens less streams of one."""
    requests: Seconds = defaultdict(list)
    chunks: Seconds = defaultdict(list)
    for i in range(rounds):
        for name in _turn(list(servers), i):
            server = servers[name]
            await server.set(first=0.0, rate=0.0)
            requests[name].append(await _spent(server, _LANES, [chat(1000, TOKENS, False)] * _EACH))
            short = await _spent(server, _STREAMS, [chat(1000, 1, True)] * _EACH)
            await server.set(rate=_RATE)
            long = await _spent(server, _STREAMS, [chat(1000, tokens, True)])
            chunks[name].append((long - short) / (tokens - 1))
    return [
        Cpu(name, median(requests[name]), median(chunks[name]), _added(requests, name), _added(chunks, name))
        for name in servers
    ]


def _added(found: Seconds, name: str) -> float:
    return median(a - b for a, b in zip(found[name], found["bare"], strict=True))


async def _spent(server: Server, lanes: int, work: Sequence[bytes]) -> float:
    """CPU seconds per request of `work` on each of so many connections."""
    connections = [await Connection.to(server.port) for _ in range(lanes)]

    async def one(connection: Connection) -> None:
        for data in work:
            await expect(connection, data)

    await expect(connections[0], work[0])
    before = server.cpu()
    await asyncio.gather(*map(one, connections))
    spent = server.cpu() - before
    for connection in connections:
        connection.leave()
    return spent / (lanes * len(work))
