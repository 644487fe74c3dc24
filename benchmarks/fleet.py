"""Engine processes that take turns: only one runs at a time, the others are stopped (SIGSTOP).

An idle vLLM engine does not sleep at once (its processes poll shared memory for a second and more), so without the
stop every turn would be measured beside the spinning of the one before it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from thriftree.benchmarks import worker
from thriftree.benchmarks.contenders import EngineSpec
from thriftree.benchmarks.worker import Ask, Turn

_START_SECONDS = 900.0
_TURN_SECONDS = 1800.0
_STOP_SECONDS = 10.0
_GROUP_SECONDS = 5.0


class EngineFailed(RuntimeError):
    """An engine did not start, died or did not answer; the message says which and what its log says."""


class Member:
    """One engine process, seen from here."""

    def __init__(self, spec: EngineSpec, log: Path) -> None:
        self.spec, self.log = spec, log
        context = multiprocessing.get_context("spawn")
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=worker.serve, args=(spec, theirs, log), name=f"bench-{spec.key}")
        self.process.start()
        theirs.close()
        self.facts: dict[str, Any] = {}

    def ready(self) -> None:
        self.facts = self._receive(_START_SECONDS)

    def call(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        return self._receive(_TURN_SECONDS)

    def _receive(self, patience: float) -> Any:
        try:
            if not self._pipe.poll(patience):
                raise EngineFailed(f"engine {self.spec.key} did not answer in {patience:.0f} s{self._last_words()}")
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise EngineFailed(f"engine {self.spec.key} died{self._last_words()}") from None
        if kind == "error":
            raise EngineFailed(f"engine {self.spec.key}: {value}{self._last_words()}")
        return value

    def _last_words(self) -> str:
        try:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return "\n  " + "\n  ".join(lines[-15:]) if lines else ""

    def signal(self, number: int) -> None:
        """To the engine's whole process group (it made one of its own)."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        with suppress(OSError):
            self._pipe.send(("close", ()))
        self.process.join(_STOP_SECONDS)
        self._wait_for_group()
        self.signal(signal.SIGKILL)  # what is left of the group
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._pipe.close()

    def _wait_for_group(self) -> None:
        """The engine's own processes put their shared memory away after ours has gone."""
        end = time.monotonic() + _GROUP_SECONDS
        with suppress(ProcessLookupError):
            while self.process.pid is not None and time.monotonic() < end:
                os.killpg(self.process.pid, 0)
                time.sleep(0.05)


class Fleet:
    """The engines of one run, by key."""

    def __init__(self, members: dict[str, Member]) -> None:
        self.members = members

    def generate(self, key: str, asks: Sequence[Ask], in_flight: int) -> Turn:
        turn: Turn = self.turn_of(key).call("generate", asks, in_flight)
        return turn

    def turn_of(self, key: str) -> Member:
        """Let this one run and nobody else, from rest: two turns in a row begin as two of different engines do."""
        self.rest()
        self.members[key].signal(signal.SIGCONT)
        return self.members[key]

    def rest(self) -> None:
        """Nobody runs."""
        for member in self.members.values():
            member.signal(signal.SIGSTOP)

    def idle_share(self, seconds: float = 1.0) -> float:
        """Cores that the resting engines use: must be 0."""
        self.rest()
        before, began = self._cpu(), time.perf_counter()
        time.sleep(seconds)
        return (self._cpu() - before) / (time.perf_counter() - began)

    def _cpu(self) -> float:
        import psutil  # type: ignore[import-untyped]

        total = 0.0
        for member in self.members.values():
            root = psutil.Process(member.process.pid)
            for process in (root, *root.children(recursive=True)):
                times = process.cpu_times()
                total += times.user + times.system
        return total


@contextmanager
def running(specs: Iterable[EngineSpec], say: Callable[[str], None]) -> Iterator[Fleet]:
    """Start the engines one after the other (each compiles), stop all of them at the end, whatever happens."""
    members: dict[str, Member] = {}
    # vLLM's processes are ended before they give their shared memory back; Python's tracker does it, and would say so.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that engines are ended then, too
    with tempfile.TemporaryDirectory(prefix="thriftree-bench-", ignore_cleanup_errors=True) as folder:
        try:
            for spec in {spec.key: spec for spec in specs}.values():
                began = time.perf_counter()
                say(f"starting engine {spec.key} ({spec.dtype})")
                member = members[spec.key] = Member(spec, Path(folder) / f"{spec.key}.log")
                member.ready()
                say(f"engine {spec.key} is ready after {time.perf_counter() - began:.0f} s")
                member.signal(signal.SIGSTOP)
            yield Fleet(members)
        finally:
            for member in members.values():
                member.close()
            signal.signal(signal.SIGTERM, before)
