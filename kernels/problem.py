"""A random decode step over a paged cache, for tests and the bench. Whatever must not be read is NaN."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thriftree.kernels.tree_attention import layout

NAN = float("nan")


@dataclass(frozen=True)
class Problem:
    """Arguments of `tree_attention`, by name; `parents` per request, for whoever wants to mutate the tree."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    row_start: Tensor
    ctx_lens: Tensor
    ancestors: Tensor
    depth: Tensor
    scale: float

    @property
    def step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of `prepare`."""
        return self.block_table, self.row_start, self.ctx_lens, self.ancestors, self.depth

    @property
    def layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """First arguments of `Plan.run`."""
        return self.query, self.key, self.value, self.key_cache, self.value_cache

    def to(self, dtype: torch.dtype) -> Problem:
        """The same step in another type."""
        names = ("query", "key", "value", "key_cache", "value_cache")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})

    def output(self) -> Tensor:
        """A fresh output, every element NaN until written."""
        return torch.full_like(self.query, NAN)


def random_parents(rows: int, rng: random.Random) -> list[int]:
    """Parent row of each row: the root's is -1, any earlier row for the others."""
    return [-1, *(rng.randrange(max(0, i - 6), i) for i in range(1, rows))]


def chain(rows: int) -> list[int]:
    """The tree that is plain causal attention."""
    return list(range(-1, rows - 1))


def bits(parents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ancestor bit sets ``[R, words]`` and depths ``[R]`` of several trees."""
    words = -(-max(map(len, parents)) // 64)
    sets: list[list[int]] = []
    depths: list[int] = []
    for tree in parents:
        own: list[int] = []
        for row, parent in enumerate(tree):
            own.append((own[parent] if parent >= 0 else 0) | 1 << row)
            depths.append(0 if parent < 0 else depths[len(depths) - row + parent] + 1)
        sets += [[signed(s >> 64 * w & (1 << 64) - 1) for w in range(words)] for s in own]
    return torch.tensor(sets, dtype=torch.int64), torch.tensor(depths, dtype=torch.int32)


def signed(word: int) -> int:
    """64 bits as torch's int64 holds them."""
    return word - (1 << 64) if word >> 63 else word


def make(
    parents: Sequence[Sequence[int]],
    ctx: Sequence[int],
    *,
    heads: int = 9,
    kv_heads: int = 3,
    dim: int = 64,
    block: int = 128,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    fused: bool = True,
    isa: str = "vec",
    device: str = "cpu",
) -> Problem:
    """A step of ``len(ctx)`` requests. `fused`: query, key and value are views of one tensor, as in vLLM."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(map(len, parents))
    needed = [-(-max(c, 1) // block) for c in ctx]
    total = sum(needed) + 2
    order = torch.randperm(total, generator=generator).int()
    table = torch.zeros(len(ctx), max(needed) + 1, dtype=torch.int32)
    cache = torch.full((total, kv_heads, block, 2 * dim), NAN, dtype=dtype)
    key_cache, value_cache = cache.view(total, kv_heads, 2 * block, dim).chunk(2, dim=2)
    used = 0
    for request, count in enumerate(needed):
        table[request, :count] = order[used : used + count]
        used += count
        at = torch.arange(ctx[request])
        slots = table[request][at // block].long() * block + at % block
        for side, keys in ((key_cache, True), (value_cache, False)):
            tokens = torch.randn(ctx[request], kv_heads, dim, generator=generator).to(dtype)
            layout.write(side, slots, tokens, keys, isa)
    key_cache, value_cache = cache.to(device).view(total, kv_heads, 2 * block, dim).chunk(2, dim=2)
    qkv = torch.randn(rows, heads + 2 * kv_heads, dim, generator=generator).to(device, dtype)
    query, key, value = torch.split(qkv, [heads, kv_heads, kv_heads], 1)
    if not fused:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    ancestors, depth = bits(parents)
    starts = torch.tensor([0, *map(len, parents)]).cumsum(0).int()
    ctx_lens = torch.tensor(ctx, dtype=torch.int32)
    step = (table.to(device), starts.to(device), ctx_lens.to(device), ancestors.to(device), depth.to(device))
    return Problem(query, key, value, key_cache, value_cache, *step, scale=dim**-0.5)
