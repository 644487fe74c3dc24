"""Random cached rows for tests and the bench. Whatever must not be read is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thriftree.kernels.kv_rows import grid
from thriftree.kernels.kv_rows.reference import cells

NAN = float("nan")
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


@dataclass
class Problem:
    """The rows of one request in a group of layers, and what is cached in them."""

    key_caches: list[Tensor]  # of each layer [blocks, kv_heads, block, dim]
    value_caches: list[Tensor]
    table: Tensor  # [H, nb] head blocks
    lens: Tensor  # [H] rows
    keys: list[Tensor]  # of each layer [H, M, D]; NaN after a head's last row
    values: list[Tensor]
    isa: str

    def bits(self) -> list[Tensor]:
        """All caches as integers: NaN compares as well."""
        return [c.view(BITS[c.element_size()]).clone() for c in (*self.key_caches, *self.value_caches)]

    def moves(self, counts: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random disjoint `sources`, `destinations` among the rows, so many in each layer, and `offsets`."""
        block = self.key_caches[0].shape[2]
        heads, most = torch.nonzero(torch.arange(int(self.lens.max()))[None, :] < self.lens[:, None]).T, []
        for count in counts:
            some = torch.randperm(heads.shape[1], generator=generator)[: 2 * count]
            head, row = heads[0, some], heads[1, some]
            most.append(self.table.long()[head, row // block] * block + row % block)
        sources = torch.cat([m[: len(m) // 2] for m in most])
        destinations = torch.cat([m[len(m) // 2 :] for m in most])
        return sources, destinations, torch.tensor([0, *counts]).cumsum(0)


def make(
    lens: Sequence[int],
    *,
    layers: int = 1,
    kv_heads: int = 1,
    dim: int = 64,
    block: int = 32,
    dtype: torch.dtype = torch.float32,
    isa: str = "vec",
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """A row table for each length, on head blocks drawn at random from caches of `kv_heads` heads (1: head blocks)."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-n // block) for n in lens]
    blocks = -(-(sum(needed) + 3) // kv_heads)
    order = torch.randperm(blocks * kv_heads, generator=generator)
    table = torch.zeros(len(lens), max(max(needed), 1) + 1, dtype=torch.int32)
    for head, used in enumerate(needed):
        table[head, :used] = order[sum(needed[:head]) : sum(needed[: head + 1])]
    made = Problem([], [], table.to(device), torch.tensor(lens), [], [], isa)
    for _ in range(layers):
        cache = torch.full((blocks, kv_heads, 2 * block, dim), NAN, dtype=dtype)
        for half, keys in zip(cache.chunk(2, dim=2), (True, False), strict=True):
            rows = torch.full((len(lens), max(lens), dim), NAN, dtype=dtype)
            for head, count in enumerate(lens):
                rows[head, :count] = torch.randn(count, dim, generator=generator).to(dtype)
                put(half, cells(table[head : head + 1], torch.arange(count)[None], block)[0], rows[head], keys, isa)
            (made.keys if keys else made.values).append(rows.to(device))
            (made.key_caches if keys else made.value_caches).append(half)
    both = zip(made.key_caches, made.value_caches, strict=True)
    pairs = [torch.cat(pair, dim=2).to(device).chunk(2, dim=2) for pair in both]
    made.key_caches, made.value_caches = [list(half) for half in zip(*pairs, strict=True)]
    return made


def put(cache: Tensor, at: Tensor, rows: Tensor, keys: bool, isa: str) -> None:
    """Write ``rows [n, D]`` into cells ``[n]``."""
    (heads, block), view = cache.shape[1:3], grid.by_token(cache, keys, isa)
    head_block, row, inner = at // block, at % block, view.shape[3]
    where = (head_block // heads, head_block % heads, row // inner, row % inner)
    view[where] = rows[: len(at)].unflatten(1, view.shape[4:])
