from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from starlette.types import ASGIApp

from tests.server.live import LiveServer
from thriftree.server.app import build
from thriftree.server.methods import capabilities
from thriftree.server.settings import Settings
from thriftree.server.state import GatewayState

Gateway = Callable[..., tuple[ASGIApp, GatewayState]]


@pytest.fixture(scope="session")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """On the default model, with a short queue; its start is the longest of all, so several files share it."""
    from thriftree.zoo import smollm2

    smollm2.ensure()
    flags = ["--thrift", "exact", "--admission-max-running", "4", "--admission-max-queue", "16"]
    with LiveServer(tmp_path_factory.mktemp("default"), [*flags, "--deadlines-between-tokens", "60"]) as live:
        print(f"\nserver: alive after {live.alive_seconds:.1f} s, ready after {live.ready_seconds:.1f} s")
        yield live
    assert live.code == 0, live.console


@pytest.fixture
def gateway() -> Gateway:
    """A gateway in front of some app: ``gateway(engine, speculation=True, **settings)``."""

    def make(engine: ASGIApp | None, speculation: bool = True, **settings: object) -> tuple[ASGIApp, GatewayState]:
        state = GatewayState(capabilities=capabilities(speculation, "auto", 16))
        if engine is not None:
            state.engine_app, state.phase = engine, "ready"
        return build(Settings(**settings), state), state

    return make
