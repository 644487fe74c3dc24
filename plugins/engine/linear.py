"""Puts our product of few rows under vLLM's unquantized linear layers, where it is measured to be faster.

While the model loads, every layer that vLLM gives a oneDNN product is noted with its weights. After that both products
are timed on this machine, for each shape and number of rows, and ours is used up to the number of rows where it stops
being faster. vLLM's product keeps its own packed copy for prefills, so the weights are held twice.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from vllm.model_executor.layers import utils

from thriftree.kernels.linear import TYPES, Linear, available
from thriftree.plugins.engine.memory import available_bytes
from thriftree.plugins.engine.seam import replaced

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
#: Ours must be so much faster, or a limit would hang on noise.
_GAIN = 0.97
#: Weights that are read in one timing: more than a processor's caches hold.
_COLD_BYTES = 128 << 20
#: What a second copy of the weights may take of the memory that is free.
_SHARE = 0.4

Product = Callable[..., torch.Tensor]


@dataclass
class Layer:
    """One of vLLM's layers, its own product, and ours."""

    module: Any
    stock: Product
    ours: Linear

    @property
    def shape(self) -> tuple[int, int, torch.dtype]:
        return self.ours.n, self.ours.k, self.ours.weight.dtype

    def install(self, limit: int) -> None:
        """Ours up to that many rows; 0 gives the weights back."""
        self.ours.limit = limit
        if limit:
            ours = self.ours
            self.module.cpu_linear = lambda x, weight, bias: ours(x, bias)


class FewRows:
    """The layers of one model."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note the layers that vLLM sets up inside."""
        handlers: list[Any] = []

        def create(*args: Any, **kwargs: Any) -> Any:
            handlers.append(stock_create(*args, **kwargs))
            return handlers[-1]

        def dispatch(layer: Any, remove_weight: bool) -> None:
            weight = layer.weight.detach()
            handlers.clear()
            stock_dispatch(layer, remove_weight)
            if handlers and weight.dtype in TYPES and weight.is_contiguous():
                self.layers.append(Layer(layer, layer.cpu_linear, Linear(weight, handlers[-1])))

        with (
            replaced(utils.ops, "create_onednn_mm", create) as stock_create,
            replaced(utils, "dispatch_cpu_unquantized_gemm", dispatch) as stock_dispatch,
        ):
            yield

    def settle(self) -> None:
        """Measure, and install ours where it is faster."""
        size = sum(layer.ours.weight.nbytes for layer in self.layers)
        free = available_bytes()
        if not self.layers or not available():
            return self.layers.clear()
        if free is not None and size > _SHARE * free:
            logger.warning(
                "thriftree: linear layers stay vLLM's: a second copy of the weights takes %d MiB of %d MiB free",
                size >> 20, free >> 20,
            )  # fmt: skip
            return self.layers.clear()
        begun, limits = perf_counter(), {}
        groups = defaultdict(list)
        for layer in self.layers:
            groups[layer.shape].append(layer)
        for shape, group in groups.items():
            limits[shape] = limit = measure(group)
            for layer in group:
                layer.install(limit)
        self.layers = [layer for layer in self.layers if layer.ours.limit]
        shown = ", ".join(f"{n}x{k}: {limit}" for (n, k, _), limit in limits.items())
        logger.info("thriftree: own linear layers up to so many rows: %s (%.1f s)", shown, perf_counter() - begun)


def measure(group: Sequence[Layer], rows: Sequence[int] = ROWS) -> int:
    """Rows up to which our product of these layers, all of one shape, is faster than vLLM's; 0: it never is."""
    n, k, dtype = group[0].shape
    some = list(group[: max(1, -(-_COLD_BYTES // group[0].ours.weight.nbytes))])
    if not _agree(some[0], torch.randn(rows[-1], k).to(dtype)):
        logger.warning("thriftree: the linear kernel is wrong on this machine (%dx%d); not used", n, k)
        return 0
    limit = 0
    for count in rows:
        ours, stock = _race(some, torch.randn(count, k).to(dtype))
        if ours > _GAIN * stock:
            break
        limit = count
    return limit


def _agree(layer: Layer, x: torch.Tensor) -> bool:
    layer.ours.limit = len(x)
    ours, stock = layer.ours(x).float(), layer.stock(x, layer.ours.weight, None).float()
    scale = float(stock.abs().max()) or 1.0
    return bool((ours - stock).abs().max() <= scale * (1e-4 if x.dtype == torch.float32 else 2e-2))


def _race(layers: Sequence[Layer], x: torch.Tensor, rounds: int = 3) -> tuple[float, float]:
    """The best seconds of ours and of vLLM's product of `x` by all layers, taking turns."""
    ours = stock = float("inf")
    for layer in layers:
        layer.ours.limit = len(x)
    for _ in range(rounds):
        begun = perf_counter()
        for layer in layers:
            layer.ours(x)
        between = perf_counter()
        for layer in layers:
            layer.stock(x, layer.ours.weight, None)
        ours, stock = min(ours, between - begun), min(stock, perf_counter() - between)
    return ours, stock
