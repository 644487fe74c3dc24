"""Ends the work on a request at the moment its client leaves."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class Departure:
    """``async with Departure(receive) as client: ...``: the block is cancelled when the client hangs up.

    Only that cancellation is swallowed, and then `left` is true. Call `answered` before the last message is sent: from
    then on a closed connection is no departure. Nothing else may read from `receive` meanwhile.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.left = self._over = False

    def answered(self) -> None:
        self._over = True

    async def __aenter__(self) -> Departure:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.create_task(self._watching())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._over = True
        self._watch.cancel()
        if not self.left:
            return False
        others = self._task.uncancel()  # somebody else may want this task to end too
        return kind is asyncio.CancelledError and not others

    async def _watching(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._over:
            self.left = True
            self._task.cancel()
