"""Building the C kernel, and sharing torch's threads."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from thriftree.kernels import build, problem
from thriftree.kernels.tree_attention import backend, cpu, reference, tree_attention

RUN = """
import os, torch
from thriftree.kernels import build, problem
from thriftree.kernels.tree_attention import backend, cpu, tree_attention
build.FLAGS = ("-O1", "-march=native", "-fPIC", "-std=gnu11", "-w")  # quick to build
torch.set_num_threads(2)
torch.randn(1 << 22).exp_().sum()
before = len(os.listdir("/proc/self/task"))
p = problem.make([problem.chain(9)], [1000])
out = p.output()
for _ in range(20):
    tree_attention(*p.layer, *p.step, p.scale, out=out)
more = len(os.listdir("/proc/self/task")) - before
print(backend(), bool(cpu.library().thriftree_parallel()), more, bool(out.isfinite().all()))
"""


def start(**env: str) -> subprocess.Popen[str]:
    whole = {**os.environ, **env}
    return subprocess.Popen([sys.executable, "-c", RUN], env=whole, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.strip()


def test_workers_build_at_once_and_start_no_threads_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [start(THRIFTREE_CACHE=str(tmp_path)) for _ in range(2)]
    assert [finish(worker) for worker in workers] == ["c True 0 True"] * 2
    built = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in built] == ["tree_attention.so"]
    stamp = built[0].stat().st_mtime_ns
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O1", "-march=native", "-fPIC", "-std=gnu11", "-w"))
    assert build.library(cpu.LIBRARY) == built[0] and built[0].stat().st_mtime_ns == stamp


def test_with_intel_openmp_preloaded() -> None:
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if not library.exists():
        pytest.skip("intel-openmp is not installed")
    assert finish(start(LD_PRELOAD=str(library))) == "c True 0 True"


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu.library.cache_clear()
    yield tmp_path
    cpu.library.cache_clear()


def test_without_a_compiler_torch_takes_over(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.WARNING):
        assert backend() == "torch" and backend() == "torch"
    assert [r.message for r in caplog.records if "no C compiler found" in r.message] == [caplog.records[0].message]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of this machine")
@pytest.mark.parametrize(("march", "lanes"), [("x86-64", 4), ("x86-64-v3", 8)])
def test_smaller_machines(march: str, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if march != "x86-64" and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this machine is smaller still")
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O1", f"-march={march}", "-fPIC", "-std=gnu11", "-w"))
    cpu.library.cache_clear()
    try:
        library = cpu.library()
        assert library is not None and library.thriftree_lanes() == lanes
        for dtype, limit in ((torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
            p = problem.make([problem.chain(9), problem.chain(1)], [100, 31]).to(dtype)
            expected = torch.empty(p.query.shape, dtype=torch.float64)
            reference.tree_attention(*p.layer, *p.step, p.scale, out=expected, accumulate=torch.float64)
            out = p.output()
            tree_attention(*p.layer, *p.step, p.scale, out=out)
            assert float((out.double() - expected).abs().max()) <= limit
    finally:
        cpu.library.cache_clear()


def test_a_broken_compiler_is_named(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = unbuilt / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'error: no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", "broken-cc")
    with caplog.at_level(logging.WARNING):
        assert backend() == "torch"
    assert "no such luck" in caplog.text
