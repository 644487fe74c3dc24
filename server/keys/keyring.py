"""What the auth layer asks: whose key is this? Answered from memory, which follows its sources within a second."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic, time

from thriftree.server.errors import StartError
from thriftree.server.keys import token
from thriftree.server.keys.static import StaticKeys
from thriftree.server.keys.store import Store
from thriftree.server.keys.views import DatabaseView, StaticView
from thriftree.server.principal import Principal

logger = logging.getLogger("thriftree.server")
#: At most this old is what a lookup knows: half of the second in which a revoked key must be refused, and half again.
REFRESH_SECONDS = 0.25


class Keyring:
    """All configured keys. For one thread (the event loop's), but for `save`."""

    def __init__(
        self,
        database: Path | None = None,
        listed: Iterable[StaticKeys | Path] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Reads everything once. Raises StartError."""
        self._database, self._clock = database, clock
        self._views: list[DatabaseView | StaticView] = [StaticView(keys) for keys in listed]
        self._stored = DatabaseView(database) if database is not None else None
        if self._stored is not None:
            self._views.insert(0, self._stored)
        self._refreshed = clock()
        self._used: dict[str, float] = {}

    def lookup(self, presented: bytes) -> Principal | None:
        """The holder of a key; None for a revoked one and for anything else. Bounded time, whatever is presented."""
        if not 0 < len(presented) <= token.MAX_BYTES:
            return None
        now = self._clock()
        if now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            for view in self._views:
                view.refresh()
        digest = token.digest(presented)
        for view in self._views:
            if (principal := view.find(presented, digest)) is not None:
                if view is self._stored and principal.key_id is not None:
                    self._used[principal.key_id] = time()
                return principal
        return None

    @property
    def unsaved(self) -> bool:
        """Whether there are times of use that the database does not know."""
        return bool(self._used)

    def take_used(self) -> Mapping[str, float]:
        """Key id -> when it was last used, since the last call; for `save`."""
        used, self._used = self._used, {}
        return used

    def save(self, used: Mapping[str, float]) -> None:
        """Write times of use in one batch, over a connection of its own: for a thread beside the event loop."""
        if self._database is None or not used:
            return
        try:
            store = Store(self._database, create=False)
            try:
                store.touch(used)
            finally:
                store.close()
        except (StartError, sqlite3.Error) as error:
            logger.warning("keys: last-used times were not saved: %s", error)

    def close(self) -> None:
        """Save what is unsaved; no lookup after it."""
        self.save(self.take_used())
        for view in self._views:
            view.close()
