"""The end of a server's life: no newcomers, running answers get their time, then an error event."""

from __future__ import annotations

import asyncio
import signal

from thriftree.server.admission.gate import Gate
from thriftree.server.errors import ApiError
from thriftree.server.state import GatewayState

_LOOK_SECONDS = 0.05
_LAST_SECONDS = 2.0  # for cut answers to reach their clients


class Signals:
    """SIGTERM and SIGINT: the first says stop, the second says now."""

    def __init__(self) -> None:
        self.stop, self.now = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.received)

    def received(self) -> None:
        (self.now if self.stop.is_set() else self.stop).set()


async def drain(state: GatewayState, gate: Gate, seconds: float, now: asyncio.Event) -> int:
    """Close the gate, wait for what is inside, cut what is left after so many seconds; how many were cut.

    `/ready` says 503 from the first moment on. When `now` is set nobody is waited for.
    """
    state.phase = "draining"
    gate.close()
    await _empty(gate, seconds, now)
    return await cut(
        state, gate, ApiError(503, "draining", "the server is stopping", headers={"Retry-After": "5"}), now
    )


async def cut(state: GatewayState, gate: Gate, error: ApiError, now: asyncio.Event) -> int:
    """End every running request with that error, and let it reach the clients; how many there were."""
    count = state.end_all(error)
    if count:
        await _empty(gate, _LAST_SECONDS, now)
    return count


async def _empty(gate: Gate, seconds: float, now: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while gate.running and loop.time() < end and not now.is_set():
        await asyncio.sleep(_LOOK_SECONDS)
