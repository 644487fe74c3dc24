"""Quotas over a restart: a small SQLite file that is at most a second old, also after `kill -9`.

A row says how much a bucket owed (its level) and the wall-clock time of that; the process itself counts on a monotonic
clock. A clock that was set back between two runs lets no time pass: buckets are as they were saved, never emptier.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from time import time_ns

from thriftree.server.errors import StartError
from thriftree.server.quota.memory import MemoryLimiter

logger = logging.getLogger("thriftree.server")

_SECONDS = 0.5  # between two saves: with the time that a save takes, under the second that may be lost
_SCHEMA = "CREATE TABLE IF NOT EXISTS levels (name TEXT PRIMARY KEY, level INTEGER NOT NULL, saved INTEGER NOT NULL)"
_SAVE = "INSERT OR REPLACE INTO levels VALUES (?, ?, ?)"
_FORGET = "DELETE FROM levels WHERE saved + level <= ?"


class SnapshotLimiter(MemoryLimiter):
    """`MemoryLimiter` with a file behind it. `failed` is called for every save that went wrong."""

    def __init__(self, path: Path, failed: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.path, self._failed = path, failed
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """
        Raises:
            StartError: the file cannot be made or written.
        """
        self.restore(await asyncio.to_thread(load, self.path, time_ns()))
        self.changed = set()
        self._task = asyncio.create_task(self._keep_saving())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self._save()

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            # A save in flight is finished when the task is cancelled, so that the last one comes after it.
            saving = asyncio.ensure_future(self._save())
            try:
                await asyncio.shield(saving)
            except asyncio.CancelledError:
                await saving
                raise

    async def _save(self) -> None:
        if not self.changed:
            return
        rows = self.drain_changes()
        try:
            await asyncio.to_thread(save, self.path, rows, time_ns())
        except (sqlite3.Error, OSError) as error:
            logger.error("quotas were not saved to %s: %s", self.path, error)
            self._failed()
            if self.changed is not None:
                self.changed.update(name for name, _ in rows)  # once more next time


def save(path: Path, rows: list[tuple[str, int]], wall: int) -> None:
    """Write the levels as of `wall` (nanoseconds since the epoch); rows of buckets that are full by now go."""
    with contextlib.closing(_open(path)) as database, database:
        database.executemany(_SAVE, [(name, level, wall) for name, level in rows])
        database.execute(_FORGET, (wall,))


def load(path: Path, wall: int) -> list[tuple[str, int]]:
    """The levels as they are at `wall`. A file that is no database is moved aside, with a warning.

    Raises:
        StartError: the file cannot be made or written.
    """
    try:
        return _read(path, wall)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StartError(f"quotas.snapshot {path}: {error}") from None
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        logger.warning("%s is damaged (%s): it is now %s, and all quotas begin full", path, error, aside)
        return _read(path, wall)
    except OSError as error:
        raise StartError(f"quotas.snapshot {path}: {error.strerror}") from None


def _read(path: Path, wall: int) -> list[tuple[str, int]]:
    with contextlib.closing(_open(path)) as database, database:
        database.execute(_FORGET, (wall,))  # also shows whether the file can be written
        rows = database.execute("SELECT name, level, saved FROM levels").fetchall()
    return [(name, level - max(0, wall - saved)) for name, level, saved in rows]


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=5)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database
