"""What the operator sees, apart from what the engine logs: few lines here, everything else in the log file."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

_KEEP_LOGS = 10
_LINE = 600
_ERROR = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Unsupported|WrongVersion)): (.+)")
_NOISE = ("Engine core initialization failed", "EngineCore failed", "leaked", "cancelled")


class Console:
    """Progress on the terminal; standard output and error of this process and its children go to the log."""

    def __init__(self) -> None:
        self._out: TextIO = sys.stderr
        self._begun = time.monotonic()
        self.log: Path | None = None

    def redirect(self, log: Path) -> None:
        """From now on only `say` and `fail` reach the terminal."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out = os.fdopen(os.dup(2), "w", buffering=1)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
        self.log = log

    def say(self, line: str) -> None:
        print(f"thriftree [{time.monotonic() - self._begun:5.1f} s] {line}", file=self._out, flush=True)

    def fail(self, line: str) -> None:
        """The one line of a start that failed."""
        line = " ".join(line.split())
        if len(line) > _LINE:  # vLLM lists every architecture it knows
            line = f"{line[:_LINE]}..." + (f" (log: {self.log})" if self.log else "")
        print(f"thriftree: {line}", file=self._out, flush=True)

    def cause(self, fallback: str) -> str:
        """The first telling error in the log, and where the rest is."""
        if self.log is None:
            return fallback
        sys.stderr.flush()
        text = self.log.read_text(errors="replace")
        found = [m for m in _ERROR.finditer(text) if not any(noise in m.group(2) for noise in _NOISE)]
        why = f"{found[0].group(1)}: {found[0].group(2)}" if found else fallback
        return f"{why[:400]} (log: {self.log})"


def debugging() -> bool:
    """Whether a failed start shows its traceback, and the engine's log goes to the terminal."""
    return os.environ.get("THRIFTREE_DEBUG", "0") not in ("", "0")


def plain(error: BaseException) -> str:
    """What an error says, without the wrapping: a refusal raised while vLLM builds its config comes out of pydantic."""
    if isinstance(error, ValidationError):
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def fresh_log(folder: Path) -> Path:
    """A log file for this run; of the earlier ones the newest few stay."""
    for file in sorted(folder.glob("serve-*.log"))[: -_KEEP_LOGS + 1]:  # their names begin with the time
        file.unlink(missing_ok=True)  # another server may be doing the same
    return folder / f"serve-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
