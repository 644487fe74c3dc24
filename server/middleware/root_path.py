"""The path that a proxy serves us under (``--root-path /llm``), whether the proxy takes it off or leaves it on."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Everything below sees paths without it; `scope["root_path"]` holds it, for links."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        self.app, self.root = app, root
        self._raw = root.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        path, raw = scope["path"], scope.get("raw_path") or b""
        if path == self.root or path.startswith(self.root + "/"):
            path = path[len(self.root) :] or "/"
            raw = raw.removeprefix(self._raw) or b"/"
        await self.app({**scope, "path": path, "raw_path": raw, "root_path": self.root}, receive, send)
