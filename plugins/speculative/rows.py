"""Token Recycling's adjacency: the target's most likely next tokens, keyed by the last token and by the last
two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from struct import Struct

import numpy as np
from numpy.typing import NDArray

#: Measured on CPython 3.11 (106) and rounded up: key, dict slot and half of a packed row of eight ids.
ENTRY_BYTES = 140
_NO_ROW: tuple[int, ...] = ()


def pair_key(before: int, token: int) -> int:
    """One integer for two tokens (cheaper to hash and to hold than a tuple)."""
    return before << 32 | token


class RowTable:
    """``key -> k ids, most likely first``; the most recent writing wins, the least recently written goes
    first.

    Rows are kept packed (four bytes an id) because boxed integers would take ten times that.
    """

    __slots__ = ("_rows", "_struct", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows: dict[int, bytes] = {}
        self._struct = Struct("")

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: int) -> bool:
        return key in self._rows

    def get(self, key: int) -> tuple[int, ...]:
        row = self._rows.get(key)
        if row is None:
            return _NO_ROW
        if len(row) == self._struct.size:
            return self._struct.unpack(row)
        return tuple(memoryview(row).cast("i"))

    def put(self, key: int, row: bytes) -> None:
        rows = self._rows
        rows.pop(key, None)  # so that insertion order is order of writing
        rows[key] = row
        if len(row) != self._struct.size:
            self._struct = Struct(f"{len(row) // 4}i")
        if len(rows) > self.limit:
            self.shrink(self.limit - self.limit // 8)

    def shrink(self, entries: int) -> None:
        """Forget the oldest until at most `entries` are left (in bulk: popping a dict's head one by one is
        quadratic)."""
        for key in list(islice(self._rows, max(len(self._rows) - entries, 0))):
            del self._rows[key]

    def state_bytes(self) -> int:
        return len(self._rows) * ENTRY_BYTES


class Rows:
    """A tenant's rows: `one` by the last token, `two` by the last two."""

    __slots__ = ("one", "two")

    def __init__(self, limit: int = 65_536) -> None:
        self.one = RowTable(limit)
        self.two = RowTable(limit)

    def write(self, pairs: Sequence[tuple[int, int]], rows: NDArray[np.int32]) -> None:
        """Store ``rows[r]`` as what follows ``pairs[r]``; where a key comes twice the later row wins."""
        packed = np.ascontiguousarray(rows, dtype=np.int32)
        size = packed.itemsize * packed.shape[1]
        data = packed.tobytes()
        one, two = self.one, self.two
        at = 0
        for before, token in pairs:
            row = data[at : at + size]
            at += size
            one.put(token, row)
            if before >= 0:
                two.put(before << 32 | token, row)

    def write_verified(
        self, pairs: Sequence[tuple[int, int]], rows: NDArray[np.int32], *, prompt: bool = False
    ) -> None:
        """`write`, so that the row worth most wins: the last of a prompt, the first (most probable) node of a
        tree."""
        if prompt or len(pairs) == 1:
            self.write(pairs, rows)
        else:
            self.write(pairs[::-1], rows[::-1])

    def unseen(self, pairs: Sequence[tuple[int, int]]) -> list[int]:
        """Indices of the pairs that have no row yet, the first of equal pairs only."""
        two, one = self.two, self.one
        missing: dict[int, int] = {}
        for i, (before, token) in enumerate(pairs):
            key = before << 32 | token if before >= 0 else token
            if key not in (two if before >= 0 else one):
                missing.setdefault(key, i)
        return list(missing.values())

    def shrink(self, share: float) -> None:
        for table in (self.one, self.two):
            table.shrink(int(len(table) * share))

    def state_bytes(self) -> int:
        return self.one.state_bytes() + self.two.state_bytes()
