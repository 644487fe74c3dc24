"""Clients in memory whose connection lives: they send, wait, and leave when told to."""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Scope

CHAT = "/v1/chat/completions"


class Client:
    """One request; after the body its connection stays open until the answer is whole or `leave` is called."""

    def __init__(self, app: ASGIApp, body: Any, path: str = CHAT, headers: dict[str, str] | None = None) -> None:
        self.status, self.chunks, self.headers = 0, list[bytes](), dict[str, str]()
        self.whole = False
        self.begun = monotonic()
        self.seconds = 0.0
        self._app, self._path = app, path
        self._data = json.dumps(body).encode()
        self._extra = headers or {}
        self._gone = False
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": self._data, "more_body": False})
        self.stalled: asyncio.Event | None = None  # set one: `send` blocks, as for a client that does not read
        self.task = asyncio.create_task(self._run())

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def error(self) -> Any:
        """The error of the answer, or of a stream's last event."""
        last = self.body.removesuffix(b"\n\n").rpartition(b"data: ")[2]
        return json.loads(last)["error"]

    def leave(self) -> None:
        """Is said once: a layer that takes the word must pass it on."""
        if not self._gone:
            self._gone = True
            self._inbox.put_nowait({"type": "http.disconnect"})

    async def _run(self) -> Client:
        given = {"content-type": "application/json", "content-length": str(len(self._data)), **self._extra}
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        try:
            async with asyncio.timeout(30):
                await self._app(scope, self._inbox.get, self._send)
        finally:
            self.seconds = monotonic() - self.begun
        return self

    async def _send(self, message: Message) -> None:
        if self.stalled is not None:
            await self.stalled.wait()
        if self._gone:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            return
        if message.get("body"):
            self.chunks.append(message["body"])
        self.whole = not message.get("more_body", False)
        if self.whole:
            self.leave()
