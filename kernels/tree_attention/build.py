"""Compile the C kernel once per machine with the host's compiler, into a cache folder that workers share."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = ("cpu.c", "commit.c")
HEADERS = ("tile.h", "work.h", "gemm.h", "simd.h")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-std=gnu11", "-w")


class NoCompiler(RuntimeError):
    """The kernel cannot be built here; the message is one line and says why."""


def compiler() -> str:
    """Path of the first C compiler of ``$CC``, cc, gcc, clang."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise NoCompiler("no C compiler found ($CC, cc, gcc, clang)")


@functools.cache
def processor() -> str:
    """What ``-march=native`` depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def folder() -> Path:
    """Where this build lives: named after sources, flags, compiler and processor."""
    here = Path(__file__).parent
    parts = [(here / name).read_bytes() for name in SOURCES + HEADERS]
    parts += [repr((FLAGS, compiler(), platform.machine(), processor())).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    root = os.environ.get("THRIFTREE_CACHE") or Path.home() / ".cache" / "thriftree"
    return Path(root) / "kernels" / digest


def run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{command[0]} did not run: {error}") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise NoCompiler(f"{command[0]} failed: {first.strip()}")


def library() -> Path:
    """Path of the shared library, built now if need be. Workers may race: the rename is atomic."""
    target = folder() / "tree_attention.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            # The OpenMP entry points stay undefined: torch's runtime, loaded already, serves them, so
            # there is no second pool of threads.
            sources = [str(Path(__file__).parent / name) for name in SOURCES]
            run(compiler(), *FLAGS, "-shared", *sources, "-o", f"{work}/cpu.so", "-lm")
            os.replace(f"{work}/cpu.so", target)
    except OSError as error:
        raise NoCompiler(f"cannot write {target.parent}: {error.strerror}") from None
    return target
