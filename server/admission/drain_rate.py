"""How fast requests leave, measured while there is no free place, and what that says about waiting. Pure."""

from __future__ import annotations

from math import ceil, exp


class DrainRate:
    """Departures per second of saturated time, both forgotten with the time constant `memory` (seconds).

    Time in which places are free says nothing about capacity, so the clock stands still then: `start` when the last
    place is taken, `stop` when one is free again, `left` at every departure in between. All times in seconds.
    """

    def __init__(self, memory: float = 30.0) -> None:
        self.memory = memory
        self._left = self._seconds = 0.0
        self._since: float | None = None

    def start(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def stop(self, now: float) -> None:
        self._advance(now)
        self._since = None

    def left(self, now: float) -> None:
        """One request has left; without effect while the clock stands still."""
        if self._since is not None:
            self._advance(now)
            self._left += 1

    def per_second(self, now: float) -> float | None:
        """The rate; None before anything has left. It falls while nothing does."""
        self._advance(now)
        return self._left / self._seconds if self._left and self._seconds > 0 else None

    def wait(self, ahead: int, now: float) -> float | None:
        """Seconds until `ahead` requests have left; None: not known yet."""
        rate = self.per_second(now)
        return None if rate is None else ahead / rate

    def retry_after(self, ahead: int, now: float, unknown: int = 5, longest: int = 120) -> int:
        """Whole seconds for the header, at least 1."""
        wait = self.wait(ahead, now)
        return unknown if wait is None else max(1, min(longest, ceil(wait)))

    def _advance(self, now: float) -> None:
        if self._since is None or now <= self._since:
            return
        kept = exp((self._since - now) / self.memory)
        self._seconds = self._seconds * kept + self.memory * (1 - kept)
        self._left *= kept
        self._since = now
