"""Quotas over a restart, `kill -9` included."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import time_ns

import pytest

from thriftree.server.errors import StartError
from thriftree.server.principal import Quota
from thriftree.server.quota import snapshot
from thriftree.server.quota.gcra import MINUTE, SECOND
from thriftree.server.quota.limiter import Grant, plan_of
from thriftree.server.quota.snapshot import SnapshotLimiter, load, save

LIMITS = plan_of("acme", "a", Quota(requests_per_minute=600), Quota(tokens_per_minute=6000))
assert LIMITS is not None

#: Takes one request each 10 ms for ever; a line for each, with the wall-clock time.
CHILD = """
import asyncio, sys, time
from pathlib import Path
from thriftree.server.principal import Quota
from thriftree.server.quota.limiter import Grant, plan_of
from thriftree.server.quota.snapshot import SnapshotLimiter

async def main():
    limits = plan_of("acme", "a", Quota(requests_per_minute=1000), Quota())
    limiter = SnapshotLimiter(Path(sys.argv[1]))
    await limiter.start()
    while True:
        assert isinstance(await limiter.admit(limits, 0), Grant)
        print(time.time_ns(), flush=True)
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


def left(limiter: SnapshotLimiter, grant: object) -> list[int]:
    assert isinstance(grant, Grant)
    return [b.rate.remaining(level) for b, level in zip(grant.plan.buckets, grant.levels, strict=True)]


async def test_a_restart_keeps_what_was_used(tmp_path: Path) -> None:
    assert LIMITS is not None
    first = SnapshotLimiter(tmp_path / "deep" / "quotas.sqlite")
    await first.start()
    for _ in range(100):
        await first.admit(LIMITS, 50)
    await first.stop()
    second = SnapshotLimiter(first.path)
    await second.start()
    requests, tokens = left(second, await second.admit(LIMITS, 0))
    await second.stop()
    assert 499 <= requests <= 520 and 1000 <= tokens <= 1200  # what two seconds bring back, at most


def test_kill_9_loses_a_second_at_most(tmp_path: Path) -> None:
    path = tmp_path / "quotas.sqlite"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    times = [int(child.stdout.readline()) for _ in range(170)]  # about two seconds: killed between two saves
    os.kill(child.pid, signal.SIGKILL)
    killed = time_ns()
    times += [int(line) for line in child.stdout.read().split()]
    child.wait()
    child.stdout.close()
    [(name, level)] = load(path, killed)
    assert name == "key:requests:a:{acme}"
    # Each request costs 60 ms, and since the first one time has brought some back.
    kept = (level + killed - times[0]) / (MINUTE // 1000)
    last_second = sum(time > killed - SECOND for time in times)
    assert len(times) - last_second - 1 <= kept <= len(times) + 1


def test_time_passes_between_two_runs(tmp_path: Path) -> None:
    path, now = tmp_path / "q", time_ns()
    save(path, [("a", 30 * SECOND), ("b", 90 * SECOND), ("c", 0)], now)
    assert load(path, now + 40 * SECOND) == [("b", 50 * SECOND)]
    assert load(path, now + 200 * SECOND) == []


def test_a_clock_that_went_back_lets_no_time_pass(tmp_path: Path) -> None:
    path, now = tmp_path / "q", time_ns()
    save(path, [("a", 30 * SECOND)], now)
    assert load(path, now - 10_000 * SECOND) == [("a", 30 * SECOND)]


def test_rows_do_not_pile_up(tmp_path: Path) -> None:
    path, now = tmp_path / "q", time_ns()
    for i in range(20):
        save(path, [(f"{i}-{j}", 10 * SECOND) for j in range(50)], now + i * 10 * SECOND)
    assert len(load(path, now)) == 50


def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "q"
    path.write_bytes(b"this is no database, whatever it may be" * 100)
    assert load(path, 0) == []
    assert (tmp_path / "q.damaged").exists() and "begin full" in caplog.text
    save(path, [("a", MINUTE)], 1)
    assert load(path, 1) == [("a", MINUTE)]


async def test_a_place_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "quotas.sqlite", tmp_path):
        with pytest.raises(StartError, match=r"quotas\.snapshot"):
            await SnapshotLimiter(path).start()


async def test_a_save_that_fails_is_counted_and_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIMITS is not None
    failures: list[int] = []
    limiter = SnapshotLimiter(tmp_path / "q", lambda: failures.append(1))
    await limiter.start()
    await limiter.admit(LIMITS, 600)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "save", full)
        await asyncio.sleep(0.8)
    assert failures
    await limiter.stop()
    assert {name for name, _ in load(limiter.path, time_ns())} == {"tenant:tokens:{acme}"}
