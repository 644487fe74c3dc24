"""Where models live on disk, and how a folder appears there: whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: The file that says "complete": written last, read first.
STAMP = "thriftree.json"

Say = Callable[[str], None]


class ZooError(RuntimeError):
    """Something the user can act on: one line that says what happened and what to do."""


def say(line: str) -> None:
    """The default progress line: standard error, so that `thriftree model path` stays clean on standard output."""
    print(line, file=sys.stderr, flush=True)


def root() -> Path:
    """The cache folder: ``$THRIFTREE_CACHE`` or ``~/.cache/thriftree``."""
    return Path(os.environ.get("THRIFTREE_CACHE") or Path.home() / ".cache" / "thriftree").expanduser()


def models() -> Path:
    """Where models are unpacked: ``$THRIFTREE_MODELS`` (a folder of an image, say), or ``models`` in the cache."""
    return Path(os.environ.get("THRIFTREE_MODELS") or root() / "models").expanduser()


def require_space(folder: Path, need: int) -> None:
    """Refuse before the work, not in the middle of it."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ZooError(
            f"no disk space: {folder} has {free / 1e9:.2f} GB free, {need / 1e9:.2f} GB are needed; "
            "free some or set THRIFTREE_CACHE to another folder"
        )


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """One builder per target; the others wait and then find it built."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def appear(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes `target` by one rename when the block ends well."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
