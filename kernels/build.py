"""Compile C kernels once per machine with the host's compiler, into a cache folder that workers share."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-std=gnu11", "-w")


@dataclass(frozen=True)
class Library:
    """A shared library: its name and files, by their paths under `kernels/`."""

    name: str
    sources: tuple[str, ...]
    headers: tuple[str, ...]
    torch_op: str | None = None  # a C++ file against torch's stable ABI


class NoCompiler(RuntimeError):
    """The kernel cannot be built here; the message is one line and says why."""


def compiler() -> str:
    """Path of the first C compiler of ``$CC``, cc, gcc, clang."""
    return _first("C", "CC", "cc", "gcc", "clang")


def _first(language: str, variable: str, *names: str) -> str:
    for name in (os.environ.get(variable, ""), *names):
        if name and (found := shutil.which(name)):
            return found
    raise NoCompiler(f"no {language} compiler found (${variable}, {', '.join(names)})")


@functools.cache
def processor() -> str:
    """What ``-march=native`` depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _files(wanted: Library) -> list[Path]:
    here = Path(__file__).parent
    return [here / name for name in (*wanted.sources, *wanted.headers, *filter(None, (wanted.torch_op,)))]


def folder(wanted: Library) -> Path:
    """Where this build lives: named after sources, flags, compiler, processor and, where it matters, torch."""
    parts = [file.read_bytes() for file in _files(wanted)]
    against = _torch_version() if wanted.torch_op else ""
    parts += [repr((FLAGS, compiler(), platform.machine(), processor(), against)).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    root = os.environ.get("THRIFTREE_CACHE") or Path.home() / ".cache" / "thriftree"
    return Path(root) / "kernels" / digest


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{command[0]} did not run: {error}") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise NoCompiler(f"{command[0]} failed: {first.strip()}")


def library(wanted: Library) -> Path:
    """Path of the shared library, built now if need be. Workers may race: the rename is atomic."""
    target = folder(wanted) / f"{wanted.name}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            built = f"{work}/built.so"
            _build(wanted, Path(work), built)
            os.replace(built, target)
    except OSError as error:
        raise NoCompiler(f"cannot write {target.parent}: {error.strerror}") from None
    return target


def _build(wanted: Library, work: Path, built: str) -> None:
    # The OpenMP entry points stay undefined: torch's runtime, loaded already, serves them, so there is no second pool
    # of threads.
    here = Path(__file__).parent
    sources = [str(here / name) for name in wanted.sources]
    if wanted.torch_op is None:
        run(compiler(), *FLAGS, "-shared", *sources, "-o", built, "-lm")
        return
    objects = [str(work / f"{index}.o") for index in range(len(sources))]
    for source, made in zip(sources, objects, strict=True):
        run(compiler(), *FLAGS, "-c", source, "-o", made)
    import torch

    root = Path(torch.__file__).parent
    linked = ("-I", f"{root}/include", "-L", f"{root}/lib", "-ltorch_cpu", "-lc10", "-lm")
    cxx = _first("C++", "CXX", "c++", "g++", "clang++")
    run(cxx, "-O2", "-std=c++20", "-fPIC", "-w", "-shared", str(here / wanted.torch_op), *objects, "-o", built, *linked)
