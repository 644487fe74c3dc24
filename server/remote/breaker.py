"""A circuit breaker: an engine that keeps failing is left alone for a while, then tried with one request.

closed: requests pass, their outcomes are kept for `window` seconds. open: after `failures` of them, if they are at
least `share` of the outcomes; nothing passes for the back-off. half-open: one trial passes; its success closes the
circuit, its failure opens it for twice as long (up to `longest`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class Rules:
    """Seconds and counts."""

    window: float = 30.0
    failures: int = 5
    share: float = 0.5
    first: float = 1.0
    longest: float = 60.0


class Breaker:
    """Each request takes a ticket and hands it back with `succeed`, `fail` or `abandon` (no outcome), once.

    A ticket of an earlier state says nothing about the present one: its outcome is ignored.
    """

    def __init__(self, clock: Callable[[], float], rules: Rules | None = None) -> None:
        self._clock, self.rules = clock, rules or Rules()
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._failed = 0
        self._era = 0  # counts changes of state
        self._until = 0.0
        self._backoff = self.rules.first
        self._opened = self._trial = False

    @property
    def state(self) -> State:
        if not self._opened:
            return "closed"
        return "open" if self._clock() < self._until else "half-open"

    def admits(self) -> bool:
        """Whether a request may be sent now."""
        state = self.state
        return state == "closed" or (state == "half-open" and not self._trial)

    def retry_in(self) -> float:
        """Seconds until a trial may pass; 0: now."""
        return max(0.0, self._until - self._clock()) if self._opened else 0.0

    def begin(self) -> int:
        """A ticket for one request; ask `admits` first."""
        if self._opened:
            self._trial = True
        return self._era

    def succeed(self, ticket: int) -> None:
        if ticket != self._era:
            return
        if self._opened:
            self._close()
        else:
            self._note(True)

    def fail(self, ticket: int) -> None:
        if ticket != self._era:
            return
        if self._opened:
            self._open(min(2 * self._backoff, self.rules.longest))
            return
        self._note(False)
        rules = self.rules
        if self._failed >= rules.failures and self._failed >= rules.share * len(self._outcomes):
            self._open(rules.first)

    def abandon(self, ticket: int) -> None:
        """The request ended without saying anything about the engine."""
        if ticket == self._era:
            self._trial = False

    def _note(self, good: bool) -> None:
        now = self._clock()
        self._outcomes.append((now, good))
        self._failed += not good
        while self._outcomes[0][0] <= now - self.rules.window:
            self._failed -= not self._outcomes.popleft()[1]

    def _open(self, seconds: float) -> None:
        self._backoff, self._until = seconds, self._clock() + seconds
        self._opened, self._trial = True, False
        self._forget()

    def _close(self) -> None:
        self._opened = self._trial = False
        self._forget()

    def _forget(self) -> None:
        self._era += 1
        self._outcomes.clear()
        self._failed = 0
