"""How vLLM's CPU backend lays out a block of keys and of values, by the `isa` names of its attention op."""

from __future__ import annotations

import torch
from torch import Tensor

#: Keys of a block as ``[dim, block]``, values as ``[block, dim]``.
PLAIN = ("vec", "vec16", "neon")


def check(isa: str, dtype: torch.dtype, head_size: int, block_size: int, kv_cache_dtype: str = "auto") -> None:
    """Say by name what tree attention does not support on the CPU, for a refusal at start-up."""
    if kv_cache_dtype not in ("auto", str(dtype).removeprefix("torch.")):
        raise ValueError(f"tree attention does not support a KV cache of {kv_cache_dtype} for a model of {dtype}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"tree attention does not support {dtype}")
    if isa not in (*PLAIN, "amx") or (isa == "neon" and dtype == torch.bfloat16):
        raise ValueError(f"tree attention does not know the KV cache layout of isa {isa} in {dtype}")
    if isa == "amx" and dtype != torch.bfloat16:
        raise ValueError(f"isa amx means bfloat16, not {dtype}")
    least = 32 if isa == "amx" else 16
    if head_size % least or head_size > 512:
        raise ValueError(f"head size must be a multiple of {least} up to 512, not {head_size}")
    if block_size % least:
        raise ValueError(f"block size must be a multiple of {least}, not {block_size}")


def by_token(cache: Tensor, keys: bool, isa: str) -> Tensor:
    """A view ``[blocks, kv_heads, token, token, dim, dim]`` of a cache ``[blocks, kv_heads, block, dim]``: the two
    token axes together count the tokens of a block, the two dim axes the elements of a head."""
    blocks, heads, block, dim = cache.shape
    if isa == "amx" and keys:
        return cache.view(blocks, heads, block // 16, dim // 2, 16, 2).permute(0, 1, 2, 4, 3, 5)
    if isa == "amx":
        return cache.view(blocks, heads, dim // 16, block // 2, 16, 2).permute(0, 1, 3, 5, 2, 4)
    if keys:
        return cache.view(blocks, heads, dim, block).transpose(2, 3)[:, :, :, None, :, None]
    return cache[:, :, :, None, :, None]


def read(cache: Tensor, blocks: Tensor, tokens: int, keys: bool, isa: str) -> Tensor:
    """The first `tokens` committed keys or values of the request with these blocks: ``[kv_heads, tokens, dim]``."""
    picked = by_token(cache, keys, isa)[blocks[: -(-tokens // cache.shape[2])].long()]
    return picked.flatten(4).flatten(2, 3).transpose(0, 1).flatten(1, 2)[:, :tokens]


def write(cache: Tensor, slots: Tensor, tokens: Tensor, keys: bool, isa: str) -> None:
    """Put ``tokens [n, kv_heads, dim]`` into their slots."""
    view, block = by_token(cache, keys, isa), cache.shape[2]
    at, inner = slots % block, view.shape[3]
    view[slots // block, :, at // inner, at % inner] = tokens.unflatten(2, view.shape[4:])
