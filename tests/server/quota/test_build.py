"""Settings to stores."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thriftree.server.errors import StartError
from thriftree.server.metrics import Metrics
from thriftree.server.quota import build
from thriftree.server.quota.memory import MemoryLimiter
from thriftree.server.quota.redis import RedisLimiter
from thriftree.server.quota.snapshot import SnapshotLimiter
from thriftree.server.sections import Quotas


def test_where_the_state_lives(tmp_path: Path) -> None:
    assert type(build.limiter(Quotas(), Metrics())) is MemoryLimiter
    beside = build.limiter(Quotas(), Metrics(), tmp_path / "keys.sqlite")
    assert isinstance(beside, SnapshotLimiter) and beside.path == tmp_path / "keys-quotas.sqlite"
    named = build.limiter(Quotas(snapshot=tmp_path / "q"), Metrics(), tmp_path / "keys.sqlite")
    assert isinstance(named, SnapshotLimiter) and named.path == tmp_path / "q"
    assert isinstance(build.limiter(Quotas(redis="redis://127.0.0.1:1"), Metrics()), RedisLimiter)


def test_a_wrong_url_stops_the_start() -> None:
    with pytest.raises(StartError, match=r"quotas\.redis: .*redis://"):
        build.limiter(Quotas(redis="localhost:6379"), Metrics())


def test_a_missing_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "thriftree.server.quota.redis", raising=False)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(StartError, match=r"pip install 'thriftree\[redis\]'"):
        build.limiter(Quotas(redis="redis://127.0.0.1:1"), Metrics())


async def test_failures_are_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    limiter = build.limiter(Quotas(redis="redis://127.0.0.1:1"), metrics)
    await limiter.start()
    await limiter.stop()
    assert metrics.registry.get_sample_value("thriftree_quota_store_errors_total", {"store": "redis"}) == 1
