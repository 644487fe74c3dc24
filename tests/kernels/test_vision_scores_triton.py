"""The GPU path of the readings, in Triton's interpreter or on a GPU, against torch. See interpreter.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.interpreter import DEVICE, INTERPRETED, LOOSE, compiles, triton_of
from thriftree.kernels.vision_scores import reference


@pytest.fixture()
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is not written stays NaN."""
    module = triton_of("vision_scores")

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
    fused = torch.full((total + 70, heads, 3 * dim), torch.nan, dtype=dtype, device=DEVICE)
    q, k = fused[:total, :, :dim], fused[:total, :, dim : 2 * dim]
    q.copy_(3 * torch.randn(q.shape, generator=generator))
    k.copy_(torch.randn(k.shape, generator=generator))
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    step: dict[str, Any] = {"all": {}, "first": {"rows": 1}, "some": {}}[kind]
    if kind == "some":
        room = torch.full((total + 70,), torch.nan, device=DEVICE)
        room[:total] = torch.rand(total, generator=generator) * (torch.arange(total) % 37 == 5)
        step = {"weights": room[:total]}
    found = kernel.column_sums(q, k, starts, 0.2, **step)
    expected = reference.column_sums(q, k, starts, 0.2, **step)
    assert float((found - expected).abs().max()) <= LOOSE * 1e-5 * max(1.0, float(expected.max()))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiles_for_a_gpu() -> None:
    from thriftree.kernels.vision_scores.triton import _column_sums, _row_lse

    names = dict.fromkeys(("q", "k"), "*bf16") | dict.fromkeys(("weights", "lse", "out"), "*fp32")
    names |= {"starts": "*i32", "scale": "fp32"}
    for weighed in (False, True):
        sizes = {"WEIGHED": weighed, "DIM": 80, "WIDE": 128, "M": 32, "N": 64}
        for kernel in (_row_lse, _column_sums):
            assert compiles(kernel, names, sizes)
