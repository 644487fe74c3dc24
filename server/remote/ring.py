"""Consistent hashing with bounded load: requests with the same beginning meet the same engine's prefix cache.

Every engine owns many points on a ring of 64-bit hashes. A key belongs to the first point behind its own hash, so an
engine that comes or goes moves only its own share of the keys. Bounded load (Mirrokni, Thorup, Zadimoghaddam,
arXiv:1608.01350): an engine that holds more than `factor` times its fair share is passed over, and the next one on the
ring takes the request.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from math import ceil

_POINTS = 128  # of one engine: the shares of equal engines differ by about a tenth
FACTOR = 1.25


class Ring:
    """Names on a ring; immutable."""

    def __init__(self, names: Iterable[str], points: int = _POINTS) -> None:
        self.names = tuple(dict.fromkeys(names))
        placed = sorted((_hash(f"{index}|{name}".encode()), name) for name in self.names for index in range(points))
        self._hashes = [at for at, _ in placed]
        self._owners = [name for _, name in placed]

    def order(self, key: bytes) -> Iterator[str]:
        """Every name once: the key's owner, then who would own it without him, and so on."""
        begin = bisect_right(self._hashes, _hash(key))
        seen: set[str] = set()
        for index in range(len(self._owners)):
            name = self._owners[(begin + index) % len(self._owners)]
            if name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.names):
                    return

    def choose(self, key: bytes, loads: Mapping[str, int], factor: float = FACTOR) -> str:
        """The first on the key's way that is below its bound. `loads`: requests in flight of those who can serve it.

        Raises:
            KeyError: nobody can.
        """
        bound = capacity(loads, factor)
        for name in self.order(key):
            if name in loads and loads[name] < bound:
                return name
        raise KeyError("no engine on the ring has a load")


def capacity(loads: Mapping[str, int], factor: float = FACTOR) -> int:
    """Requests that one engine may hold, the new one included; never so few that all are full (factor >= 1)."""
    return ceil(factor * (sum(loads.values()) + 1) / len(loads)) if loads else 0


def least_loaded(loads: Mapping[str, int]) -> str:
    """Of equals the first: give `loads` with the one that has rested longest in front."""
    return min(loads, key=loads.__getitem__)


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
