"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """The smaller of the machine's available memory and what the container's limit leaves; None: unknown."""
    found = [value for value in (_machine(meminfo), _container(cgroup)) if value is not None]
    return min(found, default=None)


def _machine(meminfo: Path) -> int | None:
    try:
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) << 10


def _container(cgroup: Path) -> int | None:
    """cgroup v2; page cache that can be dropped counts as free."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
