"""What the auth layer is told, and how soon it hears of changes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thriftree.server.errors import StartError
from thriftree.server.keys import limits, token
from thriftree.server.keys.keyring import REFRESH_SECONDS, Keyring
from thriftree.server.keys.static import from_texts
from thriftree.server.keys.store import Store
from thriftree.server.principal import Caps, Quota

COMMAND = (sys.executable, "-m", "thriftree.server.cli", "keys")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def on(self) -> None:
        self.now += REFRESH_SECONDS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def make(store: Store, tenant: str = "acme", caps: Caps | None = None, quota: Quota | None = None) -> bytes:
    key, identity = token.mint()
    store.add(identity, token.digest(key.encode()), tenant, "", caps or Caps(), quota or Quota())
    return key.encode()


def test_a_key_and_all_of_its_figures(file: Path) -> None:
    store = Store(file)
    store.set_tenant("acme", 2.5, Quota(tokens_per_minute=9))
    caps, quota = Caps(("a",), 5, ("exact",), ("suffix",), None, 3), Quota(1, 2, 3)
    key = make(store, caps=caps, quota=quota)
    found = Keyring(file).lookup(key)
    assert found is not None
    assert (found.tenant, found.key_id, found.weight) == ("acme", token.id_of(key), 2.5)
    assert (found.caps, found.quota, found.tenant_quota) == (caps, quota, Quota(tokens_per_minute=9))


def test_a_secret_that_is_not_the_one_of_its_id(file: Path) -> None:
    key, other = make(store := Store(file)), make(store)
    mixed = b"-".join((*key.split(b"-", 2)[:2], other.split(b"-", 2)[2]))
    ring = Keyring(file)
    assert ring.lookup(key) and ring.lookup(mixed) is None


def test_only_digests_are_on_the_disk(file: Path) -> None:
    key = make(Store(file))
    for part in file.parent.iterdir():
        assert key not in part.read_bytes() and key.split(b"-", 2)[2] not in part.read_bytes()
    assert file.stat().st_mode & 0o077 == 0


def test_changes_arrive_with_the_next_refresh(file: Path) -> None:
    store, clock = Store(file), Clock()
    first = make(store)
    ring = Keyring(file, clock=clock)
    second = make(store)
    assert ring.lookup(first) and ring.lookup(second) is None
    clock.on()
    found = ring.lookup(second)
    assert found is not None and found.weight == 1
    store.set_tenant("acme", 7, Quota(concurrent=1))
    store.revoke(str(token.id_of(first)))
    clock.on()
    assert ring.lookup(first) is None
    found = ring.lookup(second)
    assert found is not None and (found.weight, found.tenant_quota.concurrent) == (7, 1)


def test_between_refreshes_the_database_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, clock = make(Store(file)), Clock()
    ring = Keyring(file, clock=clock)
    reads: list[int] = []
    stock = Store.commits
    monkeypatch.setattr(Store, "commits", lambda self: reads.append(1) or stock(self))
    for _ in range(1000):
        assert ring.lookup(key)
    assert reads == []
    clock.on()
    ring.lookup(key)
    assert reads == [1]


def test_a_revoke_in_another_process_is_felt_within_a_second(file: Path) -> None:
    made = subprocess.run([*COMMAND, "create", "--tenant", "acme", "--database", file], capture_output=True, check=True)
    key = made.stdout.strip()
    ring = Keyring(file)
    assert ring.lookup(key)
    with subprocess.Popen([*COMMAND, "revoke", key.decode(), "--database", file], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()  # the line comes when it is done
        done = time.monotonic()
        while ring.lookup(key):
            assert time.monotonic() - done < 1
            time.sleep(0.005)
    created = subprocess.run([*COMMAND, "create", "--database", file], capture_output=True, check=True).stdout.strip()
    done = time.monotonic()
    while not ring.lookup(created):
        assert time.monotonic() - done < 1
        time.sleep(0.005)


def test_two_processes_may_create_at_once(file: Path) -> None:
    running = [subprocess.Popen([*COMMAND, "create", "--database", file], stdout=subprocess.PIPE) for _ in range(4)]
    keys = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(keys) == 4 and all(map(Keyring(file).lookup, keys))


def test_a_refresh_is_cheap_among_many_keys(file: Path) -> None:
    store, clock = Store(file), Clock()
    with store._writing() as db:
        rows = [(f"{i:012x}", "acme", "", os.urandom(32), "{}", "{}", 1.0, None, None, i + 1) for i in range(20_000)]
        db.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    ring = Keyring(file, clock=clock)
    times = []
    for _ in range(20):
        key = make(store)
        clock.on()
        begun = time.perf_counter()
        assert ring.lookup(key)
        times.append(time.perf_counter() - begun)
    assert statistics.median(times) < 0.01


def test_another_file_in_its_place(file: Path, tmp_path: Path) -> None:
    old = make(store := Store(file))
    store.close()
    new = make(other := Store(tmp_path / "other.db"))
    other.close()
    clock = Clock()
    ring = Keyring(file, clock=clock)
    shutil.move(tmp_path / "other.db", file)
    clock.on()
    assert ring.lookup(new) and ring.lookup(old) is None


def test_a_database_that_breaks_leaves_the_keys_in_force(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, clock = make(store := Store(file)), Clock()
    ring = Keyring(file, clock=clock)
    with store._writing() as db:
        db.execute("ALTER TABLE keys RENAME TO lost")
    for _ in range(3):
        clock.on()
        assert ring.lookup(key)
    assert len([r for r in caplog.records if "stay in force" in r.message]) == 1  # said once
    with store._writing() as db:
        db.execute("ALTER TABLE lost RENAME TO keys")
    store.revoke(str(token.id_of(key)))
    clock.on()
    assert ring.lookup(key) is None


def test_a_read_that_failed_is_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, clock = make(store := Store(file)), Clock()
    ring = Keyring(file, clock=clock)

    def locked(self: Store, after: int = 0) -> list[object]:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "key_rows", locked)
        store.revoke(str(token.id_of(key)))
        clock.on()
        assert ring.lookup(key)
    clock.on()
    assert ring.lookup(key) is None


def test_limits_that_are_not_understood_close_the_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(file)
    key = make(store)
    with store._writing() as db:
        db.execute("""UPDATE keys SET caps = '{"from_a_later_release": 1}'""")
    assert Keyring(file).lookup(key) is None
    assert "from_a_later_release" in caplog.text


def test_last_used_times_are_written_in_batches(file: Path) -> None:
    store = Store(file)
    keys = [make(store) for _ in range(3)]
    ring = Keyring(file)
    ring.lookup(keys[0]), ring.lookup(keys[2]), ring.lookup(b"nonsense")
    assert ring.unsaved
    ring.save(ring.take_used())
    assert not ring.unsaved
    assert {row.id for row in store.key_rows() if row.last_used} == {token.id_of(keys[0]), token.id_of(keys[2])}


def test_the_keys_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, clock = tmp_path / "keys.yaml", Clock()
    file.write_text("keys: [{key: one}]")
    ring = Keyring(listed=[file, from_texts(["fixed"], "x")], clock=clock)
    assert ring.lookup(b"one") and ring.lookup(b"fixed")
    (tmp_path / "new").write_text("keys: [{key: two}]")
    os.replace(tmp_path / "new", file)
    clock.on()
    assert ring.lookup(b"two") and ring.lookup(b"one") is None
    file.write_text("keys: [{key: three}")
    clock.on()
    assert ring.lookup(b"two") and "stay in force" in caplog.text
    file.unlink()
    clock.on()
    assert ring.lookup(b"two") and ring.lookup(b"fixed")


@pytest.mark.parametrize("presented", [b"", b"\x00", b"\xff" * 40, b"k" * (1 << 20), b"tt-000000000000-" + b"A" * 43])
def test_nonsense(file: Path, presented: bytes) -> None:
    make(Store(file))
    assert Keyring(file, [from_texts(["k"], "x")]).lookup(presented) is None


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    for path in (tmp_path / "text", tmp_path, tmp_path / "none" / "keys.db"):
        with pytest.raises(StartError, match=str(path)):
            Store(path)
    later = Store(tmp_path / "later.db")
    later.close()
    with sqlite3.connect(tmp_path / "later.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StartError, match="later release"):
        Store(tmp_path / "later.db")


def test_limits_survive_the_database() -> None:
    caps = Caps(("a", "b"), 5, ("off",), ("auto",), None, -4)
    assert limits.caps_of(limits.object_of(limits.to_json(caps))) == caps
    assert limits.to_json(Quota()) == "{}"
