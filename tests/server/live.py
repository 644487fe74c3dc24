"""A real server for tests: our command in a process of its own, on a free port, stopped at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

COMMAND = (sys.executable, "-m", "thriftree.server.cli", "serve")
_START_SECONDS = 280
_STOP_SECONDS = 40


class LiveServer:
    """``with LiveServer(folder, ["--thrift", "exact"]) as server: server.url ...``"""

    command: Sequence[str] = COMMAND
    ready_path = "/ready"
    scheme = "http"

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"
        self.folder = folder
        self._flags = list(flags)
        self._console = folder / "console.txt"
        self.alive_seconds = self.ready_seconds = 0.0
        self.code: int | None = None

    @property
    def console(self) -> str:
        return self._console.read_text()

    def __enter__(self) -> LiveServer:
        self.start(self.ready_path)
        return self

    def start(self, until: str) -> None:
        """Start, and wait until that path answers."""
        command = [*self.command, "--port", str(self.port), *self._flags]
        begun = time.monotonic()
        with self._console.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=_environment())
        try:
            while not self._answers(until):
                if not self.alive_seconds and self._answers("/health"):
                    self.alive_seconds = time.monotonic() - begun
                if self._process.poll() is not None or time.monotonic() - begun > _START_SECONDS:
                    raise RuntimeError(f"no server: {self.console}")
                time.sleep(0.2)
        except BaseException:
            self._process.kill()
            raise
        self.ready_seconds = time.monotonic() - begun

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.code is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self.code = self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
        return self.code

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = _STOP_SECONDS) -> int:
        """The exit code, once it has ended by itself."""
        self.code = self._process.wait(seconds)
        return self.code

    def child(self, name: str) -> int:
        """The process below ours whose title holds `name`."""
        for folder in Path("/proc").iterdir():
            ours = folder.name.isdigit() and self._process.pid in _ancestors(int(folder.name))
            if ours and name.encode() in (folder / "cmdline").read_bytes():
                return int(folder.name)
        raise LookupError(name)

    def metric(self, name: str) -> float:
        """The sum over a metric's label sets."""
        text = httpx.get(f"{self.url}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        assert lines, f"{name} is not exported"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def wait_idle(self, seconds: float = 15) -> bool:
        """Whether the engine comes to rest in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.metric("vllm:num_requests_running") == 0 == self.metric("vllm:num_requests_waiting"):
                return True
            time.sleep(0.3)
        return False

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(f"{self.url}{path}", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def together(*servers: LiveServer) -> Iterator[None]:
    """All started at once, all stopped at the end: a start is mostly imports, one process after the other."""
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as pool:
        starting = [pool.submit(server.__enter__) for server in servers]
        for server, start in zip(servers, starting, strict=True):
            start.result()
            stack.push(server)
        yield


def _ancestors(pid: int) -> list[int]:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return []
    return [parent, *_ancestors(parent)] if parent else []


def _environment() -> dict[str, str]:
    """Nothing of the tests' own settings: the server is what a user would start."""
    keep = {"THRIFTREE_CACHE"}
    return {name: value for name, value in os.environ.items() if name in keep or not name.startswith("THRIFTREE_")}
