"""vLLM's CPU cache of a layer."""

from __future__ import annotations

from torch import Tensor


def halves(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer's cache, as vLLM's CPU ops take them."""
    blocks, kv_heads, block, _ = kv_cache.size()
    key_cache, value_cache = kv_cache.view((blocks, kv_heads, block * 2, -1)).chunk(2, dim=2)
    return key_cache, value_cache
