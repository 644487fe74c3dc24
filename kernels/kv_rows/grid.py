"""Where the elements of a cached row lie, as sums of strides, for every layout."""

from __future__ import annotations

import torch
from torch import Tensor

from thriftree.kernels.tree_attention import layout

#: The layout of a cache ``[blocks, kv_heads, block, dim]`` that is what its strides say, as on GPUs; the other names
#: are those of vLLM's CPU cache (`layout.by_token`).
ROWS = "rows"


def default(device: torch.device) -> str:
    """The layout that is meant where none is named."""
    return "vec" if device.type == "cpu" else ROWS


def by_token(cache: Tensor, keys: bool, isa: str) -> Tensor:
    """A view ``[blocks, kv_heads, token, token, dim, dim]`` of one layer's keys or values."""
    return layout.by_token(cache, keys and isa != ROWS, "vec" if isa == ROWS else isa)


def head_blocks(cache: Tensor) -> Tensor:
    """A CPU cache ``[blocks, kv_heads, block, dim]`` as ``[blocks * kv_heads, 1, block, dim]``: the same cells."""
    blocks, heads, block, dim = cache.shape
    if cache.stride(0) != heads * cache.stride(1):
        raise ValueError("blocks and heads of this cache do not follow each other: keep its own shape")
    return cache.as_strided((blocks * heads, 1, block, dim), (cache.stride(1), cache.stride(1), *cache.stride()[2:]))


def same(tensors: list[Tensor], what: str) -> Tensor:
    """The first of them.

    Raises:
        ValueError: none, or not one shape, stride, dtype and device.
    """
    if not tensors:
        raise ValueError(f"{what}: no layer")
    first = tensors[0]
    for t in tensors:
        if (t.shape, t.stride(), t.dtype, t.device) != (first.shape, first.stride(), first.dtype, first.device):
            raise ValueError(f"{what} of the layers must have one shape, stride, dtype and device")
    return first
