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
            most.append(self.table.cpu().long()[head, row // block] * block + row % block)
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


@dataclass
class Window:
    """Query rows and cached keys; the keys that no query sees are NaN."""

    q: Tensor  # [H, G, W, D]
    k: Tensor  # [H, M, D]
    pos: Tensor  # [H, M], in random order
    q_pos: Tensor  # [W]
    scale: float

    @property
    def step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """Arguments of `column_sums` and `logits`."""
        return self.q, self.k, self.pos, self.q_pos, self.scale

    def truth(self) -> Tensor:
        """Column sums in float64, one query row after the other."""
        sums = torch.zeros(self.pos.shape, dtype=torch.float64)
        for head in range(self.q.shape[0]):
            for w, at in enumerate(self.q_pos.tolist()):
                seen = self.pos[head] <= at
                if bool(seen.any()):
                    logits = self.q[head, :, w].double() @ self.k[head, seen].double().T * self.scale
                    sums[head, seen] += logits.softmax(-1).sum(0)
        return sums


def window(
    queries: int,
    rows: int,
    *,
    heads: int = 3,
    group: int = 3,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    future: int = 0,
    seed: int = 0,
) -> Window:
    """The last rows but `future` of a cache with gaps: positions up to twice the rows, another set in each head."""
    generator = torch.Generator().manual_seed(seed)
    pos = torch.stack([torch.randperm(2 * rows, generator=generator)[:rows] for _ in range(heads)])
    q = torch.randn(queries, heads, group, dim, generator=generator).to(dtype).permute(1, 2, 0, 3)
    k = torch.randn(heads, rows, dim, generator=generator).to(dtype)
    q_pos = torch.arange(2 * rows - queries, 2 * rows) - future
    k[pos > q_pos.max()] = NAN
    return Window(2 * q, k, pos, q_pos, dim**-0.5)


@dataclass
class Decode:
    """One query row per request and the rows of its heads, all in one cache; the rest of the cache is NaN."""

    q: Tensor  # [R, H, G, D]
    rows: Problem
    table: Tensor  # [R, H, nb]
    lens: Tensor  # [R, H]
    bias: Tensor | None
    scale: float

    @property
    def step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        """Arguments of `decode_attention`."""
        return self.q, self.rows.key_caches[0], self.rows.value_caches[0], self.table, self.lens, self.scale

    def truth(self) -> Tensor:
        """Attention in float64, head by head."""
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        block = self.rows.key_caches[0].shape[2]
        for item in range(self.lens.numel()):
            request, head = divmod(item, self.lens.shape[1])
            at = torch.arange(int(self.lens[request, head]))
            bias = torch.zeros(len(at), dtype=torch.float64)
            if self.bias is not None:
                bias += self.bias[self.table[request, head].long()[at // block] * block + at % block]
            seen = bias > -torch.inf
            if bool(seen.any()):
                keys, values = (half[0][item, : len(at)][seen].double() for half in (self.rows.keys, self.rows.values))
                logits = self.q[request, head].double() @ keys.T * self.scale + bias[seen]
                out[request, head] = logits.softmax(-1) @ values
        return out


def decode(
    lens: Sequence[Sequence[int]],
    *,
    group: int = 3,
    dim: int = 64,
    block: int = 32,
    kv_heads: int = 1,
    dtype: torch.dtype = torch.float32,
    isa: str = "vec",
    biased: bool = False,
    seed: int = 0,
) -> Decode:
    """``lens[r][h]`` rows; tables name no block after the last row. `biased`: every third row or so is not looked at,
    and NaN; rows of nobody have a bias of NaN."""
    generator = torch.Generator().manual_seed(seed)
    requests, heads = len(lens), len(lens[0])
    flat = [n for request in lens for n in request]
    rows = make(flat, kv_heads=kv_heads, dim=dim, block=block, dtype=dtype, isa=isa, seed=seed)
    for line, count in zip(rows.table, flat, strict=True):
        line[-(-count // block) :] = 1 << 30
    bias = None
    if biased:
        bias = torch.full((rows.key_caches[0].shape[:3].numel(),), NAN)
        for line, count in zip(rows.table, flat, strict=True):
            at = torch.arange(count)
            mine = line.long()[at // block] * block + at % block
            bias[mine] = torch.randn(count, generator=generator)
            hidden = mine[torch.rand(count, generator=generator) < 0.3]
            bias[hidden] = -torch.inf
            for caches, keys in ((rows.key_caches, True), (rows.value_caches, False)):
                put(caches[0], hidden, torch.full((len(hidden), dim), NAN, dtype=dtype), keys, isa)
    q = 2 * torch.randn(requests, heads, group, dim, generator=generator).to(dtype)
    table = rows.table.unflatten(0, (requests, heads))
    return Decode(q, rows, table, torch.tensor(lens, dtype=torch.int32), bias, dim**-0.5)
