"""The GPU path of the choices, in Triton's interpreter or on a GPU, against the torch reference. See interpreter.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import DEVICE, INTERPRETED, compiles, triton_of
from thriftree.kernels.vision_select import reference

SIZES = [(1, 1), (2, 2), (3, 1), (63, 63), (65, 40), (577, 20), (2879, 7)]


@pytest.fixture()
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the kernels read lies in front of NaN, and so does what they write, which begins as NaN."""
    module = triton_of("vision_select")
    cosines, volumes, empty = reference.cosines, reference.volumes, torch.empty
    monkeypatch.setattr(reference, "cosines", lambda unit: poisoned(cosines(unit)))
    monkeypatch.setattr(reference, "volumes", lambda *step: tuple(poisoned(part) for part in volumes(*step)))

    def unwritten(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        behind = torch.nan if dtype.is_floating_point else -(1 << 62)
        return poisoned(torch.full(shape, behind, dtype=dtype, device=device))

    class Torch:
        empty = staticmethod(unwritten)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(module, "torch", Torch())
    assert torch.empty is empty
    return module


def poisoned(values: Tensor) -> Tensor:
    behind = torch.nan if values.dtype.is_floating_point else -(1 << 62)
    room = torch.full((values.numel() + 5000,), behind, dtype=values.dtype, device=values.device)
    room[: values.numel()] = values.flatten()
    return room[: values.numel()].view(values.shape)


def rows(count: int, dim: int = 64) -> Tensor:
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(values, dim=-1).to(DEVICE)


@pytest.mark.parametrize(("count", "k"), SIZES)
@pytest.mark.parametrize("first", [None, 0])
def test_max_min(kernel: Any, count: int, k: int, first: int | None) -> None:
    unit = rows(count)
    assert torch.equal(kernel.max_min(unit, k, first), reference.max_min(unit, k, first))


@pytest.mark.parametrize(("count", "k"), SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_greedy_dpp(kernel: Any, count: int, k: int, weighted: bool) -> None:
    unit = rows(count)
    quality = torch.rand(count, generator=torch.Generator().manual_seed(1)).to(DEVICE) + 0.1 if weighted else None
    assert torch.equal(kernel.greedy_dpp(unit, quality, k), reference.greedy_dpp(unit, quality, k))


@pytest.mark.parametrize("count", range(4, 41, 4))
def test_more_than_the_rows_span(kernel: Any, count: int) -> None:
    unit, quality = rows(count, 7), torch.linspace(1, 2, count, device=DEVICE)
    assert torch.equal(kernel.greedy_dpp(unit, quality, count), reference.greedy_dpp(unit, quality, count))


def test_ties_zeros_and_broken_rows(kernel: Any) -> None:
    axes = torch.eye(8, device=DEVICE).repeat_interleave(5, 0)
    assert kernel.max_min(axes, 8, 0).tolist() == kernel.greedy_dpp(axes, None, 8).tolist() == list(range(0, 40, 5))
    same = rows(1).repeat(50, 1)
    assert kernel.max_min(same, 50, None).tolist() == kernel.greedy_dpp(same, None, 50).tolist() == list(range(50))
    axes[3], axes[11], quality = 0, torch.nan, torch.ones(40, device=DEVICE)
    quality[17] = torch.nan
    for k in (7, 40):
        assert torch.equal(kernel.max_min(axes, k, None), reference.max_min(axes, k, None))
        assert torch.equal(kernel.greedy_dpp(axes, quality, k), reference.greedy_dpp(axes, quality, k))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiles_for_a_gpu() -> None:
    from thriftree.kernels.vision_select.triton import AHEAD, _dpp, _max_min

    names = dict.fromkeys(("between", "weights", "alone", "columns"), "*fp32") | {"first": "*i64", "picks": "*i64"}
    sizes = {"SPANNED": reference.SPANNED, "WIDE": 1024, "AHEAD": AHEAD}
    for kernel in (_max_min, _dpp):
        assert compiles(kernel, names, sizes)
