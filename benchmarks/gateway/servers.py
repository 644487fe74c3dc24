"""The servers of a run: started, asked, weighed, and stopped. Each is a process of its own on a free port."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thriftree.benchmarks.gateway.http import KEY, Connection, Failed, expect, request
from thriftree.benchmarks.gateway.serve import CONTROL

_START_SECONDS = 90.0
_STOP_SECONDS = 10.0
_PLENTY = 2_000_000_000  # a limit that is counted and never met
ENGINE = {"slots": 4096, "rate": 0.0, "first": 0.0}


@dataclass
class Server:
    """A process that listens; `behind` is the server that it hands its requests to."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    behind: Server | None = None
    others: list[int] = field(default_factory=list)  # its children

    @property
    def engine(self) -> Server:
        """Where its requests are answered."""
        return self.behind or self

    def cpu(self) -> float:
        """CPU seconds so far of everything that a request passes through."""
        own = sum(_cpu(pid) for pid in (self.process.pid, *self.others))
        return own + (self.behind.cpu() if self.behind is not None else 0.0)

    def rss(self) -> int:
        """Resident bytes of this process alone."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def set(self, **speed: float) -> dict[str, int]:
        return await self._control(speed)

    async def counts(self) -> dict[str, int]:
        """What the engine counts, and the tasks of the process."""
        return await self._control(None)

    async def _control(self, body: Any) -> dict[str, int]:
        connection = await Connection.to(self.engine.port)
        try:
            reply = await expect(connection, request(CONTROL, body))
        finally:
            connection.leave()
        found: dict[str, int] = json.loads(reply.body)
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _cpu(pid: int) -> float:
    """To the nanosecond: the process clock of another process. /proc counts in ticks of 10 ms."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError as error:
        raise Failed(f"the CPU clock of process {pid} cannot be read: {error}") from None


def start(name: str, spec: Mapping[str, Any], log: Path, behind: Server | None = None) -> Server:
    """A server of `serve`. Raises Failed with its last words."""
    command = [sys.executable, "-m", "thriftree.benchmarks.gateway.serve", json.dumps(spec)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, preexec_fn=end_with_parent)
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline().strip()
    if not line.isdigit():
        process.kill()
        process.wait()
        raise Failed(f"{name} did not start: {last_words(log)}")
    made = Server(name, process, int(line), behind)
    wait(made, log)
    return made


def wait(server: Server, log: Path, path: str = "/health", seconds: float = _START_SECONDS) -> None:
    """Until it answers. Raises Failed with its last words, and kills it."""
    import http.client

    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        asking = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        with suppress(OSError, http.client.HTTPException), closing(asking):
            asking.request("GET", path)
            if asking.getresponse().status == 200:
                return
        time.sleep(0.1)
    ended = server.process.poll() is not None
    server.process.kill()
    server.process.wait()
    how = "ended while it started" if ended else f"did not start within {seconds:g} s"
    raise Failed(f"{server.name} {how}: {last_words(log)}")


_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a new process: SIGTERM when the benchmark is gone, also where it was killed and could not say so (Linux)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def keys_file(folder: Path, keys: Mapping[str, str]) -> Path:
    """A file with a key per tenant, each with quotas that are counted and never met."""
    quota = {"requests_per_minute": _PLENTY, "tokens_per_minute": _PLENTY, "concurrent": 100_000}
    entries = [{"key": key, "tenant": tenant, "name": tenant, "quota": quota} for tenant, key in keys.items()]
    path = folder / "keys.yaml"
    path.write_text(json.dumps({"keys": entries}))  # JSON is YAML
    return path


def full(folder: Path, **more: Any) -> dict[str, Any]:
    """Settings with keys, quotas and an access log in a file."""
    auth = {"keys_file": str(keys_file(folder, {"bench": KEY}))}
    return {"auth": auth, "access_log": str(folder / "access.log"), **more}


@contextmanager
def running(folder: Path, wanted: Sequence[str], tokenizer: str | None) -> Iterator[dict[str, Server]]:
    """The contenders of `wanted` that are built here, by name; `bare` is always among them."""
    places = {"admission": {"max_running": 4096}}
    specs: dict[str, dict[str, Any]] = {
        "gateway": {"settings": places, "engine": ENGINE},
        "keys+quota+log": {"settings": full(folder, **places), "engine": ENGINE},
        "same, tokenizer": {"settings": full(folder, **places), "engine": ENGINE, "tokenizer": tokenizer},
    }
    made: dict[str, Server] = {}
    try:
        bare = made["bare"] = start("bare", {"settings": None, "engine": ENGINE}, folder / "bare.log")
        for name, spec in specs.items():
            if name in wanted and (name != "same, tokenizer" or tokenizer):
                made[name] = start(name, spec, folder / f"{name.split(',')[0]}.log")
        if "remote" in wanted:
            settings = {**places, "engine": [f"http://127.0.0.1:{bare.port}"]}
            made["remote"] = start("remote", {"settings": settings, "engine": ENGINE}, folder / "remote.log", bare)
        yield made
    finally:
        for server in reversed(made.values()):
            server.stop()
