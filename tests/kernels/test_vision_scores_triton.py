"""The GPU path of the readings, in Triton's interpreter, against the torch reference. See test_kv_rows_triton.py."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from thriftree.kernels.vision_scores import reference

pytest.importorskip("triton")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(interpreted, reason="this is that process")
def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture()
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is not written stays NaN."""
    if not interpreted:
        pytest.skip("needs TRITON_INTERPRET=1")
    module = importlib.import_module("thriftree.kernels.vision_scores.triton")

    class Torch:
        def empty(self, *shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            return torch.full(shape, torch.nan, dtype=dtype, device=device)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(module, "torch", Torch())
    return module


@pytest.mark.parametrize(
    ("lengths", "heads", "dim", "dtype"),
    [
        ([1], 1, 16, torch.float32),
        ([33], 2, 64, torch.float32),
        ([63, 1, 65], 3, 20, torch.float32),
        ([0, 130, 7], 2, 80, torch.bfloat16),
        ([257], 1, 72, torch.float16),
    ],
)
@pytest.mark.parametrize("kind", ["all", "first", "some"])
def test_column_sums(kernel: Any, kind: str, lengths: list[int], heads: int, dim: int, dtype: torch.dtype) -> None:
    total, generator = sum(lengths), torch.Generator().manual_seed(0)
    fused = torch.full((total + 70, heads, 3 * dim), torch.nan, dtype=dtype)
    q, k = fused[:total, :, :dim], fused[:total, :, dim : 2 * dim]
    q.copy_(3 * torch.randn(q.shape, generator=generator))
    k.copy_(torch.randn(k.shape, generator=generator))
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    step: dict[str, Any] = {"all": {}, "first": {"rows": 1}, "some": {}}[kind]
    if kind == "some":
        room = torch.full((total + 70,), torch.nan)
        room[:total] = torch.rand(total, generator=generator) * (torch.arange(total) % 37 == 5)
        step = {"weights": room[:total]}
    found = kernel.column_sums(q, k, starts, 0.2, **step)
    expected = reference.column_sums(q, k, starts, 0.2, **step)
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.max()))
