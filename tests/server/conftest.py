from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.types import ASGIApp

from thriftree.server.app import build
from thriftree.server.methods import capabilities
from thriftree.server.settings import Settings
from thriftree.server.state import GatewayState

Gateway = Callable[..., tuple[ASGIApp, GatewayState]]


@pytest.fixture
def gateway() -> Gateway:
    """A gateway in front of some app: ``gateway(engine, speculation=True, **settings)``."""

    def make(engine: ASGIApp | None, speculation: bool = True, **settings: object) -> tuple[ASGIApp, GatewayState]:
        state = GatewayState(capabilities=capabilities(speculation, "auto", 16))
        if engine is not None:
            state.engine_app, state.phase = engine, "ready"
        return build(Settings(**settings), state), state

    return make
