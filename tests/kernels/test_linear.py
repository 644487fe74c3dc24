"""The product of few rows: right for every shape, the same for a row whatever else is in the step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thriftree.kernels import build
from thriftree.kernels import linear as kernel
from thriftree.kernels.linear import Linear, reference

pytestmark = pytest.mark.skipif(not kernel.available(), reason="needs a C and a C++ compiler")

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SHAPES = [(576, 576), (7, 64), (5, 17), (33, 100), (64, 5000), (1, 16), (960, 63)]


class Product:
    """Stands in for vLLM's product where it must not be called: its handler is no address."""

    def __init__(self) -> None:
        self.handler_tensor = torch.tensor(0)


def make(n: int, k: int, dtype: torch.dtype, limit: int = 1 << 20) -> Linear:
    return Linear(torch.randn(n, k).to(dtype), Product(), limit)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def gap(y: Tensor, layer: Linear, x: Tensor, bias: Tensor | None) -> float:
    wanted = reference.linear(x, layer.weight, bias)
    return float((y.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1))


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_any_shape_and_number_of_rows(n: int, k: int, dtype: torch.dtype) -> None:
    layer = make(n, k, dtype)
    bias = torch.randn(n).to(dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 18, 25, 40):
            x = torch.randn(rows, k).to(dtype)
            assert gap(layer(x, bias), layer, x, bias) <= LIMITS[dtype], (threads, rows)
            assert gap(layer(x), layer, x, None) <= LIMITS[dtype], (threads, rows)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_row_does_not_depend_on_its_neighbours(n: int, k: int, dtype: torch.dtype) -> None:
    layer = make(n, k, dtype)
    x = torch.randn(25, k).to(dtype)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(len(x))])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for rows in (2, 3, 5, 6, 7, 13, 25):
            assert torch.equal(layer(x[:rows]), alone[:rows]), (threads, rows)


def test_shapes_around_the_rows_are_kept() -> None:
    layer = make(33, 100, torch.float32)
    x = torch.randn(2, 3, 100)
    assert layer(x).shape == (2, 3, 33)
    assert torch.equal(layer(x).view(6, 33), layer(x.view(6, 100)))
    assert layer(torch.empty(0, 100)).shape == (0, 33)
    strided = torch.randn(100, 4).t()
    assert torch.equal(layer(strided), layer(strided.contiguous()))


def test_every_output_is_written_and_nothing_beside() -> None:
    """Against the C function itself: the op would hide a missed write in fresh memory."""
    library = ctypes.CDLL(str(build.library(kernel.LIBRARY)))
    for n, k, rows in ((7, 64, 5), (33, 17, 13), (576, 576, 9)):
        layer = make(n, k, torch.float32)
        x, y = torch.randn(rows, k), torch.full((rows + 2, n), float("nan"))
        address = ctypes.c_void_p(int(layer.layer))
        out = ctypes.c_void_p(y[1].data_ptr())
        library.thriftree_linear(address, ctypes.c_void_p(x.data_ptr()), None, out, ctypes.c_int64(rows))
        assert y[1:-1].isfinite().all() and y[0].isnan().all() and y[-1].isnan().all()


def test_more_rows_go_to_the_engines_product() -> None:
    vllm = pytest.importorskip("vllm.platforms", reason="needs vLLM's operators")
    from vllm import _custom_ops as ops

    vllm.current_platform.import_kernels()
    weight = torch.randn(64, 96)
    wrong = torch.zeros(64, 96)  # so that one sees whose product it was
    layer = Linear(weight, ops.create_onednn_mm(wrong.t(), 8), limit=4)
    assert gap(layer(torch.ones(4, 96)), layer, torch.ones(4, 96), None) < 1e-5
    assert float(layer(torch.randn(5, 96)).abs().max()) == 0.0
    layer.limit = 5
    assert float(layer(torch.randn(5, 96)).abs().max()) > 0.0


def test_a_compiled_graph_holds_both() -> None:
    layer = make(33, 100, torch.float32)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def twice(x: Tensor) -> Tensor:
        return layer(x + 1.0) * 2.0

    for rows in (1, 9, 2):
        x = torch.randn(rows, 100)
        assert torch.allclose(twice(x), layer(x + 1.0) * 2.0)


@pytest.mark.parametrize("weight", [torch.randn(3), torch.randn(4, 6)[:, ::2], torch.ones(2, 2, dtype=torch.int8)])
def test_weights_that_it_does_not_know(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous matrix"):
        Linear(weight, Product())


def test_without_a_compiler_the_engines_product_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    kernel.available.cache_clear()
    try:
        assert not kernel.available()
        assert "compiler found" in caplog.text
    finally:
        kernel.available.cache_clear()


@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_smaller_machines(march: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("flags of x86-64 machines with AVX2")
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O1", f"-march={march}", "-fPIC", "-std=gnu11", "-w"))
    library = ctypes.CDLL(str(build.library(build.Library("linear", kernel.LIBRARY.sources, kernel.LIBRARY.headers))))
    for dtype, limit in LIMITS.items():
        layer = make(33, 100, dtype)
        for rows in (1, 5, 13):
            x = torch.randn(rows, 100).to(dtype)
            y, wide = torch.full((rows, 33), float("nan"), dtype=dtype), x.float().contiguous()
            address, source = ctypes.c_void_p(int(layer.layer)), ctypes.c_void_p(wide.data_ptr())
            library.thriftree_linear(address, source, None, ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(rows))
            assert gap(y, layer, x, None) <= limit
