"""`token_recycling`: the target's own discarded top tokens, hung on a static tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.memory import Memory, TenantMemory
from thriftree.plugins.speculative.shape import named_shape
from thriftree.plugins.speculative.tree import ROOT, DraftTree

_REQUEST_BYTES = 600


@dataclass(frozen=True, slots=True)
class TokenRecyclingConfig:
    """Remember the top-k that the target gave after each token; draft from these rows along a fixed tree of
    ranks.

    Every verified row is kept, rejected ones too: what the target thinks after a token is as good there. A
    tenant's rows outlive the request. A token without a row has no children.

    Paper: Token Recycling, arXiv 2408.08696, whose tree is ``shape="2.2.2"``. We depart from it in that
    unseen tokens propose nothing (there: id 0), that prompts may seed the rows, that the default tree is
    tuned to measured ranks, and that ``pairs`` keys rows by the last two tokens with one as the fallback.
    """

    paper: ClassVar[str] = "2408.08696"
    k: int = field(default=8, metadata={"minimum": 1, "maximum": 8, "description": "tokens used of a row"})
    shape: str = field(default="tuned", metadata={"description": "'tuned', '2.2.2', or paths of ranks: '0 1 00'"})
    update: Literal["all", "accepted"] = field(default="all", metadata={"description": "which verified rows are kept"})
    pairs: bool = field(default=True, metadata={"description": "rows by the last two tokens where there are any"})

    def __post_init__(self) -> None:
        named_shape(self.shape)


@dataclass(slots=True)
class _Request:
    memory: TenantMemory
    before: int
    last: int
    emitted: bool = False
    pending: tuple[Sequence[tuple[int, int]], NDArray[np.int32]] | None = None


class TokenRecycling(Drafter):
    wants_rows: ClassVar[bool] = True

    def __init__(self, memory: Memory, config: TokenRecyclingConfig) -> None:
        self._memory = memory
        self._config = config
        self._shape = named_shape(config.shape)
        self._requests: dict[str, _Request] = {}

    def start(self, request: str, tenant: str, prompt: Sequence[int]) -> None:
        self.finish(request)
        before, last = (ROOT, ROOT, *prompt[-2:])[-2:]
        self._requests[request] = _Request(self._memory.enter(tenant), before, last)
        self._memory.live_bytes += _REQUEST_BYTES

    def observe(self, request: str, pairs: Sequence[tuple[int, int]], rows: NDArray[np.int32]) -> None:
        state = self._requests.get(request)
        if state is None:
            return
        if self._config.update == "accepted" and state.emitted:
            state.pending = (pairs, rows)  # `emit` will tell which of them were
        else:
            state.memory.rows.write_verified(pairs, rows, prompt=not state.emitted)

    def emit(self, request: str, tokens: Sequence[int]) -> None:
        state = self._requests.get(request)
        if state is None or not tokens:
            return
        path = [state.before, state.last, *tokens]
        if state.pending is not None:
            pairs, rows = state.pending
            state.pending = None
            row_of = {pair: r for r, pair in reversed(list(enumerate(pairs)))}
            kept = [row_of[pair] for pair in pairwise(path[:-1]) if pair in row_of]
            state.memory.rows.write([pairs[r] for r in kept], rows[kept])
        state.before, state.last = path[-2:]
        state.emitted = True
        self._memory.tick()

    def unseen(self, request: str, pairs: Sequence[tuple[int, int]]) -> list[int]:
        state = self._requests.get(request)
        return state.memory.rows.unseen(pairs) if state is not None else []

    def propose(self, request: str, max_nodes: int, max_depth: int) -> DraftTree:
        state = self._requests.get(request)
        if state is None or max_nodes <= 0:
            return DraftTree()
        shape, k = self._shape, self._config.k
        rows = state.memory.rows
        one, two = rows.one.get, rows.two.get if self._config.pairs else None
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []
        # By node of the shape, the root last (index -1): our node, its token, its row once somebody asks.
        node_of: list[int | None] = [None] * len(shape) + [ROOT]
        row_of: list[tuple[int, ...] | None] = [None] * (len(shape) + 1)
        for i, (parent, rank) in enumerate(zip(shape.parents, shape.ranks, strict=True)):
            node = node_of[parent]
            if node is None or rank >= k or shape.depths[i] > max_depth:
                continue
            row = row_of[parent]
            if row is None:
                if node == ROOT:
                    before, token = state.before, state.last
                else:
                    token, above = tokens[node], parents[node]
                    before = tokens[above] if above >= 0 else state.last
                row = row_of[parent] = (two(before << 32 | token) if two else ()) or one(token)
            if rank < len(row) and row[rank] >= 0:
                node_of[i] = len(tokens)
                tokens.append(row[rank])
                parents.append(node)
                values.append(shape.values[i])
                if len(tokens) >= max_nodes:
                    break
        return DraftTree(tokens, parents, values)

    def finish(self, request: str) -> None:
        state = self._requests.pop(request, None)
        if state is not None:
            self._memory.live_bytes -= _REQUEST_BYTES
            self._memory.leave(state.memory)

    def state_bytes(self) -> int:
        return len(self._requests) * _REQUEST_BYTES
