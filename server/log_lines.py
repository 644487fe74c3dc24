"""Where the lines of the access log go."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from thriftree.server.errors import StartError

_LOOK_SECONDS = 1.0


class LogLines:
    """A file to append to, opened anew when somebody has moved it away (logrotate does); or standard output."""

    def __init__(self, target: str, clock: Callable[[], float] = monotonic) -> None:
        """`target`: a path, or ``-``. Raises StartError."""
        self._path = None if target == "-" else Path(target).expanduser()
        self._clock, self._look, self._descriptor = clock, 0.0, -1
        try:
            self._open()
        except OSError as error:
            raise StartError(f"access log {target}: {error.strerror}") from None

    def write(self, line: bytes) -> None:
        """One line, whole. Never raises: a full disk takes the log away, not the answers."""
        try:
            if self._path is not None and (now := self._clock()) >= self._look:
                self._look = now + _LOOK_SECONDS
                if self._moved(self._path):
                    os.close(self._descriptor)
                    self._open()
            os.write(self._descriptor, line + b"\n")
        except OSError:
            pass

    def close(self) -> None:
        if self._path is not None:
            os.close(self._descriptor)

    def _open(self) -> None:
        self._look = self._clock() + _LOOK_SECONDS
        if self._path is None:
            self._descriptor = sys.stdout.fileno()
        else:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _moved(self, path: Path) -> bool:
        here = os.fstat(self._descriptor)
        try:
            there = os.stat(path)
        except FileNotFoundError:
            return True
        return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)
