"""Our linear layers under vLLM's: collected while a model loads, measured, installed or given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers import utils
from vllm.platforms import current_platform

from thriftree.kernels.linear import available
from thriftree.plugins.engine import linear
from thriftree.plugins.engine.linear import FewRows, measure
from thriftree.plugins.engine.memory import available_bytes

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not available(), reason="needs a C and a C++ compiler")]


@pytest.fixture
def loaded() -> tuple[FewRows, list[nn.Linear], list[torch.Tensor]]:
    """Three layers as vLLM sets them up (their own weights are gone), and what the weights were."""
    current_platform.import_kernels()
    torch.manual_seed(0)
    layers = [nn.Linear(96, 64, bias=False), nn.Linear(96, 64, bias=False), nn.Linear(64, 96, bias=False)]
    weights = [layer.weight.detach().clone() for layer in layers]
    few_rows = FewRows()
    with few_rows.collecting():
        for layer in layers:
            utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return few_rows, layers, weights


def product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """As vLLM calls it."""
    return utils.cpu_unquantized_gemm(layer, x, layer.weight)


def right(layers: Any, weights: Any) -> bool:
    return all(
        torch.allclose(product(layer, x), x @ weight.t(), atol=1e-4)
        for layer, weight in zip(layers, weights, strict=True)
        for x in (torch.randn(rows, weight.shape[1]) for rows in (1, 5, 40))
    )


def test_ours_up_to_the_limit(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows, layers, weights = loaded
    stock = [layer.cpu_linear for layer in layers]
    monkeypatch.setattr(linear, "_race", lambda layers, x: (1.0, 2.0 if len(x) <= 8 else 0.5))
    few_rows.settle()
    assert [layer.ours.limit for layer in few_rows.layers] == [8, 8, 8]
    assert all(layer.cpu_linear is not old for layer, old in zip(layers, stock, strict=True))
    assert right(layers, weights)
    few_rows.layers.clear()
    assert right(layers, weights), "what a layer needs must live as long as the layer"


def test_the_limit_is_the_first_loss(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows than a number that loses, though more rows may win again: a noisy moment is likelier than that."""
    few_rows, _, _ = loaded
    monkeypatch.setattr(linear, "_race", lambda layers, x: (1.0, 0.5 if len(x) == 8 else 2.0))
    assert measure(few_rows.layers[:2]) == 4


def test_vllms_own_where_it_is_faster(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows, layers, weights = loaded
    stock = [layer.cpu_linear for layer in layers]
    monkeypatch.setattr(linear, "_race", lambda layers, x: (1.0, 1.0))
    few_rows.settle()
    assert [layer.cpu_linear for layer in layers] == stock and not few_rows.layers
    assert right(layers, weights)


def test_vllms_own_where_memory_is_short(loaded: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    few_rows, layers, weights = loaded
    stock = [layer.cpu_linear for layer in layers]
    monkeypatch.setattr(linear, "available_bytes", lambda: 1 << 16)
    few_rows.settle()
    assert [layer.cpu_linear for layer in layers] == stock and right(layers, weights)


def test_a_wrong_kernel_is_not_used(loaded: Any) -> None:
    few_rows, _, _ = loaded
    assert measure(few_rows.layers[:2], rows=(1,)) in (0, 1)
    few_rows.layers[0].ours.weight.mul_(1.5)  # ours reads these, vLLM's product has its copy
    assert measure(few_rows.layers[:2], rows=(1,)) == 0


def test_memory_that_is_left(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:      50 kB\n")
    assert available_bytes(meminfo, tmp_path) == 50 << 10
    (tmp_path / "memory.max").write_text("40960\n")
    (tmp_path / "memory.current").write_text("30720\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 10240\n")
    assert available_bytes(meminfo, tmp_path) == 20480
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 50 << 10
    assert available_bytes(tmp_path / "none", tmp_path / "none") is None
