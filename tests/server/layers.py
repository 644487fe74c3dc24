"""The layers around keys, over an engine of the test's choice."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.plugins.kv_cache.request import Terms
from thriftree.server.keys.keyring import Keyring
from thriftree.server.keys.static import StaticKeys
from thriftree.server.keys.token import digest
from thriftree.server.methods import capabilities
from thriftree.server.metrics import Metrics
from thriftree.server.middleware.auth import Auth
from thriftree.server.middleware.body_limit import BodyLimit
from thriftree.server.middleware.caps import KeyCaps
from thriftree.server.middleware.contract import Contract
from thriftree.server.middleware.errors import OneErrorShape
from thriftree.server.middleware.request_id import RequestId
from thriftree.server.middleware.routes import ClosedRoutes
from thriftree.server.principal import Caps, Principal

KEY = "sk-the-key-of-acme"
BEARER = {"authorization": f"Bearer {KEY}"}


def keyring(caps: Caps | None = None) -> Keyring:
    """One key, `KEY`, of the tenant acme."""
    principal = Principal("acme", "ci", caps or Caps())
    return Keyring(listed=[StaticKeys({digest(KEY.encode()): principal})])


def stack(
    engine: ASGIApp,
    keys: Keyring | None,
    metrics: Metrics | None = None,
    open_routes: tuple[str, ...] = (),
    allow: tuple[str, ...] = (),
    remote: bool = False,
    kv: Terms | None = None,
) -> ASGIApp:
    """Request id > errors > routes > body limit > auth > caps > contract > engine."""
    metrics, can = metrics or Metrics(), capabilities(True, "auto", 16, kv)
    app = engine if remote else Contract(engine, lambda: can, metrics)
    app = Auth(KeyCaps(app, metrics, remote), metrics, keys, open_routes)
    return RequestId(OneErrorShape(ClosedRoutes(BodyLimit(app, metrics, 1 << 24, 5), allow)))


def with_headers(app: ASGIApp, *pairs: tuple[bytes, bytes]) -> ASGIApp:
    """The app, asked with headers that a dict cannot hold."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "headers": [*scope["headers"], *pairs]}, receive, send)

    return asked
