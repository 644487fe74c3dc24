"""Ten times too much, a light tenant beside a flooding one, and clients that vanish: what is owed to whom.

One gateway with two tenants in front of an engine with `SLOTS` places and `SERVICE` seconds per answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from thriftree.benchmarks.gateway.http import Connection, Failed, Reply, chat
from thriftree.benchmarks.gateway.servers import Server, full, keys_file, start
from thriftree.benchmarks.stats import percentile

SLOTS, TOKENS, SERVICE, QUEUE = 8, 20, 0.1, 64
CAPACITY = SLOTS / SERVICE
TIMES = 10
#: Tokens of the flood's answers where its neighbour is measured: `TOKENS` on average. Equal ones keep step: all places
#: come free at one moment, and how long a request waits is then which phase it fell into, with the gate or without.
UNEQUAL = (10, 26, 18, 30, 14, 22)
_KEYS = {"flood": "bench-key-of-the-flood-00000", "light": "bench-key-of-the-light-00000"}
_RAMP = 0.5  # seconds before counting begins


@contextmanager
def gateway(folder: Path) -> Iterator[Server]:
    settings = full(folder, admission={"max_running": SLOTS, "max_queue": QUEUE})
    settings["auth"] = {"keys_file": str(keys_file(folder, _KEYS))}
    engine = {"slots": SLOTS, "rate": TOKENS / SERVICE}
    server = start("overload", {"settings": settings, "engine": engine}, folder / "overload.log")
    try:
        yield server
    finally:
        server.stop()


class Load:
    """Requests of one tenant to one server, on connections that are kept."""

    def __init__(self, server: Server, tenant: str, tokens: Sequence[int] = (TOKENS,)) -> None:
        """`tokens`: of its answers, in turns."""
        self.server = server
        self.replies: list[Reply] = []
        self.broken = 0
        self._idle: deque[Connection] = deque()
        self._bodies = [chat(1000, many, stream, _KEYS[tenant]) for many in tokens for stream in (False, True)]
        self._tasks: set[asyncio.Task[None]] = set()

    async def _one(self, i: int) -> None:
        connection = self._idle.pop() if self._idle else await Connection.to(self.server.port)
        try:
            self.replies.append(await connection.ask(self._bodies[i % len(self._bodies)]))
        except Failed:
            self.broken += 1
            return
        if self.replies[-1].header("connection") != "close":
            self._idle.append(connection)

    async def closed(self, clients: int, seconds: float) -> None:
        """So many clients, each asking again as soon as it is answered."""
        end = perf_counter() + seconds

        async def client(i: int) -> None:
            while perf_counter() < end:
                await self._one(i)
                i += 1

        await asyncio.gather(*map(client, range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        """So many requests per second, whatever becomes of them; returns when all are answered."""
        begun = perf_counter()
        for i in range(int(rate * seconds)):
            late = begun + i / rate - perf_counter()
            if late > 0:
                await asyncio.sleep(late)
            task = asyncio.create_task(self._one(i))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)


@dataclass
class Overload:
    """Requests per second, counts, and the seconds of every refusal."""

    capacity: float = 0.0
    goodput: float = 0.0
    answered: int = 0
    refused: list[float] = field(default_factory=list)
    bare_refusals: int = 0  # without Retry-After
    server_errors: int = 0
    others: int = 0


async def measure(server: Server, seconds: float) -> Overload:
    """Goodput at capacity (twice as many clients as places), then with ten times the capacity."""
    found = Overload()
    found.capacity = await _goodput(server, Load(server, "flood").closed(2 * SLOTS, seconds + _RAMP), seconds)
    load = Load(server, "flood")
    found.goodput = await _goodput(server, load.open(TIMES * CAPACITY, seconds + _RAMP), seconds)
    for reply in load.replies:
        if reply.status == 200:
            found.answered += 1
        elif reply.status == 429:
            found.refused.append(reply.seconds)
            found.bare_refusals += reply.header("retry-after") is None
        elif reply.status >= 500:
            found.server_errors += 1
        else:
            found.others += 1
    found.others += load.broken
    return found


async def _goodput(server: Server, load: Coroutine[None, None, None], seconds: float) -> float:
    """Answers per second that the engine finishes while the load is on."""
    task = asyncio.ensure_future(load)
    await asyncio.sleep(_RAMP)
    before, begun = await server.counts(), perf_counter()
    await asyncio.sleep(max(0.0, seconds - 0.1))
    after, ended = await server.counts(), perf_counter()
    await task
    return (after["finished"] - before["finished"]) / (ended - begun)


@dataclass
class Fairness:
    """Seconds of a light tenant's answers: alone, with every place taken but nobody else waiting, beside the flood."""

    idle: list[float]
    busy: list[float]
    flooded: list[float]

    def wait(self, of: list[float]) -> float:
        """p95 of the wait: what an answer took beyond the engine's own seconds."""
        return max(0.0, percentile(of, 0.95) - SERVICE)


async def fairness(server: Server, seconds: float) -> Fairness:
    """One light client in a closed loop. Raises Failed when it is refused."""

    async def light() -> list[float]:
        await asyncio.sleep(_RAMP)
        load = Load(server, "light")
        await load.closed(1, seconds)
        if any(reply.status != 200 for reply in load.replies) or load.broken:
            raise Failed("the light tenant was refused")
        return [reply.seconds for reply in load.replies]

    idle = await light()
    _, busy = await asyncio.gather(Load(server, "flood", UNEQUAL).closed(SLOTS, seconds + 2 * _RAMP), light())
    flood = Load(server, "flood", UNEQUAL).open(TIMES * CAPACITY, seconds + 2 * _RAMP)
    _, flooded = await asyncio.gather(flood, light())
    return Fairness(idle, busy, flooded)


@dataclass(frozen=True, slots=True)
class Vanished:
    clients: int
    running: int  # requests left in the engine
    waiting: int
    aborted: int
    tasks: int  # beyond those before
    seconds: float  # from the last one that left until the engine is empty


async def vanish(server: Server, clients: int, seed: int) -> Vanished:
    """Clients that go at random moments, half of them from streams."""
    draw = random.Random(seed)
    before = await server.counts()
    bodies = [chat(1000, 200, stream, key) for stream in (False, True) for key in _KEYS.values()]

    async def one(i: int) -> None:
        connection = await Connection.to(server.port)
        asking = asyncio.ensure_future(connection.ask(bodies[i % len(bodies)]))
        await asyncio.wait((asking,), timeout=draw.expovariate(1 / 0.3))
        connection.leave()
        asking.cancel()
        with suppress(asyncio.CancelledError, Failed):
            await asking

    tasks = []
    for i in range(clients):
        tasks.append(asyncio.create_task(one(i)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    begun = perf_counter()
    while (now := await server.counts())["running"] + now["waiting"] and perf_counter() - begun < 2:
        await asyncio.sleep(0.005)
    seconds = perf_counter() - begun
    await asyncio.sleep(0.3)  # for uvicorn to put its own tasks away
    now = await server.counts()
    return Vanished(
        clients, now["running"], now["waiting"], now["aborted"] - before["aborted"],
        now["tasks"] - before["tasks"], seconds,
    )  # fmt: skip
