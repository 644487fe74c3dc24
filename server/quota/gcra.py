"""The generic cell rate algorithm: a rate limit whose whole state is one moment, the theoretical arrival time (TAT).

TAT is when the bucket would be full again if nothing more came. Each cost pushes it into the future by the time that
the rate needs to earn it back; a cost is refused if TAT would lie further ahead than one minute. So the burst is one
minute's worth: "60 a minute" may come at once, and then one each second. Any span of s seconds sees at most
limit * (1 + s / 60).

Times are integer nanoseconds of any one clock. A cost's time is rounded up, so rounding grants nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units a minute; nothing else is kept here, the TAT belongs to the caller."""

    per_minute: int

    def __post_init__(self) -> None:
        if self.per_minute < 1:
            raise ValueError(f"a rate is at least 1 a minute, not {self.per_minute}")

    def time_of(self, cost: int) -> int:
        """Nanoseconds in which the rate earns `cost` units, rounded up."""
        return -(-cost * MINUTE // self.per_minute)

    def fits(self, cost: int) -> bool:
        """Whether a full bucket could ever pay that."""
        return cost <= self.per_minute

    def take(self, tat: int, now: int, cost: int) -> tuple[int, int]:
        """``(new tat, 0)`` if the bucket pays `cost` now, else ``(tat, nanoseconds until it can)``.

        At exactly that time it can, and not before. A cost that never fits is given the time until the bucket is full,
        plus what it lacks: ask `fits` first.
        """
        after = (tat if tat > now else now) + -(-cost * MINUTE // self.per_minute)
        wait = after - now - MINUTE
        return (tat, wait) if wait > 0 else (after, 0)

    def remaining(self, level: int) -> int:
        """Units that can be taken at once, given how far TAT lies ahead (`level`, in nanoseconds)."""
        if level >= MINUTE:
            return 0
        return (MINUTE - level) * self.per_minute // MINUTE if level > 0 else self.per_minute

    def settle(self, tat: int, now: int, mark: int, taken: int, actual: int) -> int:
        """The TAT after the true cost of an earlier take has become known; `mark` is the TAT right after that take.

        As if the true cost had been taken then: more than was taken pushes TAT on, past the burst if need be (a debt,
        which later requests wait out). What was taken too much comes back, but only as far as time has not brought it
        back already: a bucket that has refilled since is not filled twice.
        """
        delta = self.time_of(actual) - self.time_of(taken)
        return tat + max(delta, -max(0, mark - now))
