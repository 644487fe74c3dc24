"""Keys and tenants in a SQLite file. Write-ahead log: the server reads while `thriftree keys` writes.

Every change takes the next number of one counter (`version`), so that a reader asks for what is new and for no more.
Rows are never deleted: a revoked key keeps its row, and with it the answer to "whose was it".
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from thriftree.server.errors import StartError
from thriftree.server.keys import limits
from thriftree.server.principal import Caps, Quota

_SCHEMA = 1
_TABLES = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, digest BLOB NOT NULL, caps TEXT NOT NULL,
    quota TEXT NOT NULL, created REAL NOT NULL, last_used REAL, revoked REAL, version INTEGER NOT NULL
) STRICT;
CREATE INDEX keys_by_version ON keys (version);
CREATE TABLE tenants (
    name TEXT PRIMARY KEY, weight REAL NOT NULL, quota TEXT NOT NULL, version INTEGER NOT NULL
) STRICT;
CREATE INDEX tenants_by_version ON tenants (version);
"""
_LAST = "coalesce((SELECT max(version) FROM {}), 0)"
_NEXT = f"(1 + max({_LAST.format('keys')}, {_LAST.format('tenants')}))"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key. Times are seconds since 1970; `caps` and `quota` JSON as stored."""

    id: str
    tenant: str
    name: str
    digest: bytes
    caps: str
    quota: str
    created: float
    last_used: float | None
    revoked: float | None
    version: int


@dataclass(frozen=True, slots=True)
class TenantRow:
    """What a tenant has beside its keys."""

    name: str
    weight: float
    quota: str
    version: int


class Store:
    """One connection. Not for two threads at once."""

    def __init__(self, path: Path, create: bool = True, wait_seconds: float = 5.0) -> None:
        """Opens the file, makes it where it is missing (readable by its owner only).

        Raises:
            StartError: it cannot be opened, or is something else.
        """
        self.path = path
        try:
            if create:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            elif not path.is_file():
                raise StartError(f"key database {path}: no such file; `thriftree keys create` makes it")
            self._db = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"key database {path}: {getattr(error, 'strerror', None) or error}") from None

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA:
            raise StartError(f"key database {self.path}: made by a later release of thriftree")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # a revoked key stays revoked after a power cut
        if version == 0:
            with self._writing() as db:
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # two may come here at once
                    for statement in _TABLES.split(";")[:-1]:
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {_SCHEMA}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add(self, identity: str, digest: bytes, tenant: str, name: str, caps: Caps, quota: Quota) -> None:
        """A new key; only the sha256 of it."""
        row = (identity, tenant, name, digest, limits.to_json(caps), limits.to_json(quota), time())
        with self._writing() as db:
            db.execute(f"INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, {_NEXT})", row)

    def revoke(self, identity: str) -> KeyRow | None:
        """For ever; the row as it was before, or None for an unknown id."""
        with self._writing() as db:
            before = next(self._keys(db, "WHERE id = ?", (identity,)), None)
            if before is not None and before.revoked is None:
                db.execute(f"UPDATE keys SET revoked = ?, version = {_NEXT} WHERE id = ?", (time(), identity))
        return before

    def set_tenant(self, name: str, weight: float, quota: Quota) -> None:
        """Give a tenant its weight and quota, over all of its keys."""
        row = (name, weight, limits.to_json(quota))
        with self._writing() as db:
            db.execute(f"INSERT OR REPLACE INTO tenants VALUES (?, ?, ?, {_NEXT})", row)

    def touch(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used; no new version, for nothing that matters to a server has changed."""
        with self._writing() as db:
            db.executemany(
                "UPDATE keys SET last_used = ?1 WHERE id = ?2 AND coalesce(last_used, 0) < ?1",
                [(when, identity) for identity, when in used.items()],
            )

    def key_rows(self, after: int = 0) -> list[KeyRow]:
        """Keys changed after that version, oldest first."""
        return list(self._keys(self._db, "WHERE version > ? ORDER BY created, id", (after,)))

    def tenant_rows(self, after: int = 0) -> list[TenantRow]:
        """Tenants changed after that version."""
        with closing(self._db.execute("SELECT * FROM tenants WHERE version > ? ORDER BY name", (after,))) as rows:
            return [TenantRow(*row) for row in rows]

    def commits(self) -> int:
        """A number that differs as soon as another connection, of any process, has committed. Microseconds."""
        number: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        return number

    @staticmethod
    def _keys(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Iterator[KeyRow]:
        with closing(db.execute(f"SELECT * FROM keys {where}", values)) as rows:
            for row in rows:
                yield KeyRow(*row)
