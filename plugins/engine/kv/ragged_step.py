"""Attention of requests whose heads differ in length: each head of each request is a sequence of its own.

The rows of a step's ragged requests are taken out of the stock op and of the trees' plan, and go through
`thriftree.kernels.tree_attention` as sequences with one KV head each: prompt rows as a chain, drafts as the tree under
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftree.kernels.tree_attention import prepare
from thriftree.plugins.speculative.tree import DraftTree
from thriftree.plugins.speculative.walk import depths


class HeadTables(Protocol):
    """What each head of a request reads, beside the step's own rows."""

    def tables(self, blocks: Tensor) -> Tensor:
        """``[L, H, W]`` head blocks, in order, for block ids ``[nb]`` of the request."""

    def lengths(self, computed: int) -> Tensor:
        """``[L, H]`` rows in them, where `computed` tokens have been computed."""


@dataclass(frozen=True)
class RaggedRequest:
    """One ragged request of a step, in one group of layers."""

    cache: HeadTables
    blocks: Tensor  # its block ids
    computed: int  # tokens that are cached before this step
    first: int  # row of the step
    chunk: int  # rows before its drafts
    tree: DraftTree


class RaggedStep:
    """Shared by the layers of a group."""

    def __init__(self, requests: Sequence[RaggedRequest], heads: int, numbers: dict[str, int], isa: str) -> None:
        self._heads, self._numbers, self._isa = heads, numbers, isa
        tables = [request.cache.tables(request.blocks) for request in requests]
        width = max(table.shape[2] for table in tables)
        padded = [torch.nn.functional.pad(table, (0, width - table.shape[2])) for table in tables]
        self._tables = torch.cat(padded, 1).int()  # [L, sequences, width]
        self._ctx = torch.cat([request.cache.lengths(request.computed) for request in requests], 1).int()
        counts = [request.chunk + len(request.tree) for request in requests]
        rows = [torch.arange(request.first, request.first + n) for request, n in zip(requests, counts, strict=True)]
        #: Step row and head of every row here: by request, by head, by row.
        self._row = torch.cat([mine.repeat(heads) for mine in rows])
        self._head = torch.cat([torch.arange(heads).repeat_interleave(n) for n in counts])
        self._count = torch.tensor(counts, dtype=torch.int32).repeat_interleave(heads)
        self._start = torch.zeros(len(self._count) + 1, dtype=torch.int32)
        torch.cumsum(self._count, 0, out=self._start[1:])
        words = (max(counts) + 63) // 64
        trees = [_chain(request.chunk, request.tree, words) for request in requests]
        ancestors = torch.from_numpy(np.concatenate([np.tile(bits, (heads, 1)) for bits, _ in trees]))
        depth = torch.from_numpy(np.concatenate([np.tile(depth, heads) for _, depth in trees]))
        #: One plan for all layers: it reads the table and the lengths when it runs, and each layer puts its own there.
        self._table, self._length = self._tables[0].clone(), self._ctx[0].clone()
        start = self._start[:-1]
        self._plan = prepare(self._table, start, self._length, ancestors, depth, self._count, self._isa)
        firsts, one = [request.first for request in requests], max(counts) == 1
        #: Where every request has one row and they follow each other, what is taken out is a view.
        self._rows = slice(firsts[0], firsts[0] + len(firsts)) if one and _follow(firsts) else None

    def run(
        self, layer: str, query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor,
        output: Tensor, scale: float, softcap: float,
    ) -> None:  # fmt: skip
        """Attention of one layer's ragged rows into `output`; arguments as `Plan.run` has them."""
        number = self._numbers[layer]
        self._table.copy_(self._tables[number])
        self._length.copy_(self._ctx[number])
        caches = (_one_head(key_cache), _one_head(value_cache))
        if self._rows is not None and output.is_contiguous():
            q, k, v, out = (self._by_head(x[self._rows]) for x in (query, key, value, output))
            return self._plan.run(q, k, v, *caches, out, scale, softcap=softcap)
        q = query.unflatten(1, (self._heads, -1))[self._row, self._head]
        out = torch.empty_like(q)
        k, v = (rows[self._row, self._head][:, None] for rows in (key, value))
        self._plan.run(q, k, v, *caches, out, scale, softcap=softcap)
        output.unflatten(1, (self._heads, -1))[self._row, self._head] = out

    def _by_head(self, rows: Tensor) -> Tensor:
        """``[n * H, G, D]`` of ``rows [n, H * G, D]``."""
        return rows.reshape(-1, rows.shape[1] // self._heads, rows.shape[2])


def _follow(firsts: Sequence[int]) -> bool:
    return firsts == list(range(firsts[0], firsts[0] + len(firsts)))


def _one_head(cache: Tensor) -> Tensor:
    return cache.flatten(0, 1)[:, None]


def _chain(chunk: int, tree: DraftTree, words: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """``[rows, words]`` ancestor bits and ``[rows]`` depths of a chunk and the tree under its last row."""
    bits = [(1 << (row + 1)) - 1 for row in range(chunk)]
    for node, parent in enumerate(tree.parents):
        bits.append(bits[chunk + parent] | (1 << (chunk + node)))
    low = np.array([[bit >> (64 * word) & (2**64 - 1) for word in range(words)] for bit in bits], dtype=np.uint64)
    levels = [*range(chunk), *(chunk - 1 + level for level in depths(tree))]
    return low.view(np.int64), np.array(levels, dtype=np.int32)
