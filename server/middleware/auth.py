"""Who asks. Everything but `/health`, `/ready` and what the settings open needs a key, once keys are configured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.server.errors import ApiError
from thriftree.server.keys import token
from thriftree.server.keys.keyring import Keyring
from thriftree.server.metrics import Metrics
from thriftree.server.principal import Caps, Principal
from thriftree.server.scope import info

_ALWAYS_OPEN = ("/health", "/ready")
_CARRIERS = (b"authorization", b"x-api-key")
_LONGEST = token.MAX_BYTES + 32
_SAVE_SECONDS = 5.0
_MISSING = "no API key: send it as `Authorization: Bearer KEY` (or `x-api-key: KEY`)"
_WRONG = "the API key is not valid"


class Auth:
    def __init__(
        self, app: ASGIApp, metrics: Metrics, keyring: Keyring | None, open_routes: Iterable[str] = ()
    ) -> None:
        """No keyring: everybody is `ANYONE`."""
        self.app, self.metrics, self.keyring = app, metrics, keyring
        self._open = frozenset((*_ALWAYS_OPEN, *open_routes))
        self._saving: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.keyring is None or scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            if not self._may_stream(scope, self.keyring):
                return await send({"type": "websocket.close", "code": 4401, "reason": "no valid API key"})
        elif scope["method"] != "OPTIONS":  # a browser asks with it before it sends a key
            request = info(scope)
            try:
                request.principal = self._principal(scope, self.keyring)
            except ApiError:
                if request.route not in self._open:
                    self.metrics.bound(self.metrics.rejected, "unauthorized").inc()
                    raise
        # the key goes no further: not to an engine's log, not to another server
        headers = [pair for pair in scope["headers"] if pair[0] not in _CARRIERS]
        await self.app({**scope, "headers": headers}, receive, send)

    def _may_stream(self, scope: Scope, keyring: Keyring) -> bool:
        """A web socket has no body that caps could be held against, so it is for keys without any."""
        try:
            return self._principal(scope, keyring).caps == Caps()
        except ApiError:
            return False

    def _principal(self, scope: Scope, keyring: Keyring) -> Principal:
        presented = [(name, _token(name, value)) for name, value in scope["headers"] if name in _CARRIERS]
        if not presented:
            raise _unauthorized(_MISSING)
        names, tokens = {name for name, _ in presented}, {shown for _, shown in presented}
        once = len(names) == len(presented) and len(tokens) == 1  # in both headers, if they agree
        found = keyring.lookup(tokens.pop()) if once else None
        if found is None:
            raise _unauthorized(_WRONG)
        if keyring.unsaved and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_SECONDS, self._save, keyring)
        return found

    def _save(self, keyring: Keyring) -> None:
        self._saving = None
        asyncio.get_running_loop().run_in_executor(None, keyring.save, keyring.take_used())


def _token(name: bytes, value: bytes) -> bytes:
    """The key in a header; empty where the header holds something else."""
    if len(value) > _LONGEST:  # not even copied
        return b""
    if name == b"x-api-key":
        return value.strip()
    scheme, _, rest = value.partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else b""


def _unauthorized(why: str) -> ApiError:
    return ApiError(401, "invalid_api_key", why, headers={"WWW-Authenticate": "Bearer"})
