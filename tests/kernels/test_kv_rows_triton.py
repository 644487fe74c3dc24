"""The GPU path of the kernels for cached rows, in Triton's interpreter, against the torch reference.

Triton decides when it is first imported whether it interprets, so the tests run in a process of their own.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from thriftree.kernels.kv_rows import problem, reference

pytest.importorskip("triton")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(interpreted, reason="this is that process")
def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def kernel() -> Any:
    if not interpreted:
        pytest.skip("needs TRITON_INTERPRET=1")
    return importlib.import_module("thriftree.kernels.kv_rows.triton")


@pytest.mark.parametrize(
    ("isa", "dtype", "dim", "block", "kv_heads"),
    [
        ("rows", torch.bfloat16, 80, 16, 1),
        ("rows", torch.float32, 64, 32, 3),
        ("rows", torch.float16, 128, 16, 8),
        ("vec", torch.float32, 64, 32, 1),
        ("amx", torch.bfloat16, 64, 32, 3),
    ],
)
@pytest.mark.parametrize("counts", [(1,), (0, 63, 0, 100, 0)])
def test_move(
    kernel: Any, counts: tuple[int, ...], isa: str, dtype: torch.dtype, dim: int, block: int, kv_heads: int
) -> None:
    p = problem.make((100, 163), layers=len(counts), dim=dim, block=block, dtype=dtype, isa=isa, kv_heads=kv_heads)
    sources, destinations, offsets = p.moves(counts, torch.Generator().manual_seed(1))
    sources[5::7], destinations[6::7] = -1, -1
    before = p.bits()
    reference.move(p.key_caches, p.value_caches, sources, destinations, offsets, isa=isa)
    expected = p.bits()
    for cache, old in zip((*p.key_caches, *p.value_caches), before, strict=True):
        cache.view(old.dtype).copy_(old)
    kernel.Mover(p.key_caches, p.value_caches, isa)(sources, destinations, offsets)
    assert all(torch.equal(a, b) for a, b in zip(p.bits(), expected, strict=True))


@pytest.mark.skipif(interpreted, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiles_for_a_gpu() -> None:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from thriftree.kernels.kv_rows import triton as kernels

    sizes = {"HEADS": 8, "ROWS": 16, "TOKENS": 1, "PIECE": 1, "DIM": 80, "WIDE": 128, "N": 16, "WORD": tl.int16}
    names = dict.fromkeys(("addresses", "layers", "sources", "destinations"), "*i64")
    for kernel in (kernels._move,):
        known = {n: v for n, v in sizes.items() if n in kernel.arg_names}
        signature = {n: "constexpr" if n in known else names.get(n, "i32") for n in kernel.arg_names}
        built = triton.compile(ASTSource(kernel, signature, known), target=GPUTarget("cuda", 90, 32))
        assert "ptx" in built.asm
