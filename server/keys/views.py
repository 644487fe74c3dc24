"""What is known of keys in memory, brought up to date from where they are kept."""

from __future__ import annotations

import hmac
import logging
import os
import sqlite3
from pathlib import Path

from thriftree.server.errors import StartError
from thriftree.server.keys import limits, token
from thriftree.server.keys.static import StaticKeys, from_file
from thriftree.server.keys.store import KeyRow, Store, TenantRow
from thriftree.server.keys.tenants import Tenant
from thriftree.server.principal import Principal

logger = logging.getLogger("thriftree.server")
_READ_SECONDS = 0.05  # that a refresh may wait for a lock: the event loop waits with it


class DatabaseView:
    """Keys of a database. A refresh without changes costs some microseconds, with changes only their rows."""

    def __init__(self, path: Path) -> None:
        """Raises StartError."""
        self._path = path
        self._complained = False
        self._commits = -1
        self._open()

    def find(self, presented: bytes, digest: bytes) -> Principal | None:
        """Whose key it is."""
        entry = self._principals.get(token.id_of(presented) or "")
        return entry[1] if entry is not None and hmac.compare_digest(entry[0], digest) else None

    def refresh(self) -> None:
        """Never raises: a database that cannot be read leaves everything as it was, and a warning in the log."""
        try:
            if self._replaced():
                self._store.close()
                self._open()
            elif (commits := self._store.commits()) != self._commits:
                self._commits = commits
                self._read()
            self._complained = False
        except (StartError, sqlite3.Error, OSError) as error:
            if not self._complained:
                logger.warning("keys: %s cannot be read, the keys known so far stay in force: %s", self._path, error)
            self._complained, self._commits = True, -1

    def close(self) -> None:
        self._store.close()

    def _open(self) -> None:
        self._store = Store(self._path, wait_seconds=_READ_SECONDS)
        self._file = _identity(self._path)
        self._rows: dict[str, KeyRow] = {}
        self._tenants: dict[str, TenantRow] = {}
        self._principals: dict[str, tuple[bytes, Principal]] = {}
        self._version = 0
        self._commits = self._store.commits()
        self._read()

    def _replaced(self) -> bool:
        """Whether the path names another file now (a copy was put in its place); one that is gone is not missed."""
        try:
            return _identity(self._path) != self._file
        except FileNotFoundError:
            return False

    def _read(self) -> None:
        tenants, keys = self._store.tenant_rows(self._version), self._store.key_rows(self._version)
        for tenant in tenants:
            self._tenants[tenant.name] = tenant
        changed = {tenant.name for tenant in tenants}
        self._rows |= {row.id: row for row in keys}
        fresh = {row.id for row in keys}
        for row in [row for row in self._rows.values() if row.id in fresh or row.tenant in changed]:
            self._principals.pop(row.id, None)
            if row.revoked is None and (principal := self._principal(row)) is not None:
                self._principals[row.id] = (row.digest, principal)
        self._version = max([self._version, *(row.version for row in tenants), *(row.version for row in keys)])

    def _principal(self, row: KeyRow) -> Principal | None:
        """None for limits that this release does not understand: better no answer than one without limits."""
        try:
            caps, quota = limits.caps_of(limits.object_of(row.caps)), limits.quota_of(limits.object_of(row.quota))
            tenant = _tenant(self._tenants.get(row.tenant))
        except ValueError as error:
            logger.warning("keys: %s is refused: its limits cannot be understood: %s", row.id, error)
            return None
        return Principal(row.tenant, row.id, caps, quota, tenant.quota, tenant.weight)


class StaticView:
    """Keys that are listed somewhere: in a file, which is read again when it changes, or nowhere but in memory."""

    def __init__(self, keys: StaticKeys | Path) -> None:
        """Raises StartError."""
        self._path = keys if isinstance(keys, Path) else None
        self._seen = _stamp(self._path) if self._path is not None else None
        self._index(from_file(keys) if isinstance(keys, Path) else keys)

    def find(self, presented: bytes, digest: bytes) -> Principal | None:
        """Whose key it is."""
        entry = self._entries.get(digest[:6])
        return entry[1] if entry is not None and hmac.compare_digest(entry[0], digest) else None

    def refresh(self) -> None:
        """Never raises: a file that is gone or wrong leaves everything as it was, and a warning in the log."""
        if self._path is None or (seen := _stamp(self._path)) == self._seen:
            return
        self._seen = seen
        try:
            self._index(from_file(self._path))
        except StartError as error:
            logger.warning("keys: the keys known so far stay in force: %s", error)

    def close(self) -> None:
        pass

    def _index(self, keys: StaticKeys) -> None:
        self._entries = {digest[:6]: (digest, principal) for digest, principal in keys.by_digest.items()}


def _tenant(row: TenantRow | None) -> Tenant:
    return Tenant() if row is None else Tenant(row.weight, limits.quota_of(limits.object_of(row.quota)))


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Differs when the file has been written or another one put in its place; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
