"""A linear layer of few rows, as decoding and the verification of a tree have: the weights are read once from memory,
and up to about ten rows cost what one costs. For more rows than `limit` the engine's own product is called.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor

from thriftree.kernels import build

__all__ = ["LIBRARY", "TYPES", "Linear", "available"]

logger = logging.getLogger(__name__)
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LIBRARY = build.Library("linear", sources=("linear/linear.c",), headers=("simd.h",), torch_op="linear/op.cpp")


class _Linear(ctypes.Structure):
    """``struct linear`` of linear.c."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("type", ctypes.c_int64),
        ("limit", ctypes.c_int64),
    )


@functools.cache
def available() -> bool:
    """Whether ``torch.ops.thriftree.linear`` is there; builds it once per machine, and says once why it cannot."""
    try:
        torch.ops.load_library(str(build.library(LIBRARY)))
    except (build.NoCompiler, OSError) as error:
        logger.warning("thriftree: linear layers stay the engine's own (slower for few rows): %s", error)
        return False
    torch.library.register_fake("thriftree::linear", lambda x, layer, handler, bias, n: x.new_empty(*x.shape[:-1], n))
    return True


class Linear:
    """One layer's weights ``[n, k]``, contiguous, kept alive; callable by a compiled graph too."""

    def __init__(self, weight: Tensor, product: Any, limit: int = 0) -> None:
        """`product`: vLLM's oneDNN product of the same weights (``ops.create_onednn_mm``); kept alive too.

        Raises:
            ValueError: a weight that the kernel does not know.
        """
        if weight.ndim != 2 or not weight.is_contiguous() or weight.dtype not in TYPES:
            raise ValueError(f"a contiguous matrix of {', '.join(map(str, TYPES))} expected, not {weight.dtype}")
        self.weight, self.product = weight, product
        self.n, self.k = weight.shape
        self._struct = _Linear(weight.data_ptr(), self.n, self.k, TYPES[weight.dtype], limit)
        # The address in a tensor, as vLLM has its own: a number would be compiled into the graph and outlive its layer.
        self.layer = torch.tensor([ctypes.addressof(self._struct)])

    @property
    def limit(self) -> int:
        """Rows up to which our kernel is used."""
        return int(self._struct.limit)

    @limit.setter
    def limit(self, rows: int) -> None:
        self._struct.limit = rows

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [..., k]`` -> ``[..., n]``, in the weight's dtype."""
        y: Tensor = torch.ops.thriftree.linear(x, self.layer, self.product.handler_tensor, bias, self.n)
        return y
