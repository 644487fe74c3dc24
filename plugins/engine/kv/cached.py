"""One request's rows in one KV cache group: which token is where, what has been added up, and the move at an event."""

from __future__ import annotations

import torch
from torch import Tensor

from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.observe import weighed
from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask


class CachedRows:
    """Worker side, all layers of the group at once. Rows are counted from the window's start, in slot order."""

    def __init__(self, plan: Plan, group: GroupLayers, rope: Rope | None, seed: int, layers: int) -> None:
        self.plan, self.group, self.rope, self.seed, self.layers = plan, group, rope, seed, layers
        self.window = plan.window(group.tier)
        self.start = 0
        self._pos = torch.empty(len(group.names), group.heads, 0, dtype=torch.int32)  # rows up to the last event
        self._sums = torch.zeros(len(group.names), group.heads, 0) if plan.method.observes else None

    def grow(self, length: int) -> None:
        """Account for the rows of the tokens up to `length`: each new token is in its regular slot."""
        more = length - self.start - self._pos.shape[2]
        if more <= 0:
            return
        new = torch.arange(length - more, length, dtype=torch.int32).expand(*self._pos.shape[:2], more)
        self._pos = torch.cat((self._pos, new), 2)
        if self._sums is not None:
            self._sums = torch.nn.functional.pad(self._sums, (0, more))

    def rows(self, layer: int, table: Tensor, length: int, keep: int, ring: QueryRing | None) -> Rows:
        """What the method sees of the group's layer number `layer`; ``table [H, nb]`` from the window's start."""
        count = length - self.start
        method, group = self.plan.method, self.group
        queries = None
        if ring is not None and method.window:
            queries = ring.newest(group.indices[layer], length, min(ring.count, method.window), group.heads)
        return Rows(
            pos=self._pos[layer].long(),
            length=length,
            prompt=self.plan.prompt,
            keep=keep,
            layer=group.indices[layer],
            layers=self.layers,
            first_head=group.first_head,
            scale=group.scales[layer],
            seed=self.seed,
            rope=self.rope,
            read_keys=lambda: group.read(layer, table, count, keys=True),
            read_values=lambda: group.read(layer, table, count, keys=False),
            queries=queries,
            sums=None if self._sums is None else self._sums[layer],
        )

    def observe(self, layer: int, blocks: Tensor, length: int, queries: Tensor, first: int) -> None:
        """Add what query rows say of the cached keys: ``queries [H, G, T, D]`` of the positions from `first` on."""
        assert self._sums is not None
        table = self._table(blocks, length)
        self._sums[layer] += weighed(self.plan.method, self.rows(layer, table, length, 0, None), queries, first)

    def _table(self, blocks: Tensor, length: int) -> Tensor:
        block = self.group.tier.block
        return self.group.head_blocks(blocks[self.start // block : -(-length // block)])

    def compact(self, blocks: Tensor, length: int, ring: QueryRing | None) -> int:
        """Let the blocks before the new window start go, if there is one; ``blocks [nb]`` of the request, from 0 on.

        Returns:
            Tokens that were dropped (of every head).
        """
        start = self.window.start(length)
        leaving = start - self.start
        if leaving <= 0:
            return 0
        self.grow(length)
        table = self._table(blocks, length)
        keep = length - start
        scores = [
            self.plan.method.score(self.rows(layer, table, length, keep, ring))
            for layer in range(len(self.group.names))
        ]
        score, pos = torch.stack(scores).flatten(0, 1), self._pos.flatten(0, 1)
        mask = keep_mask(score, pos, keep, length, self.plan.sinks, self.plan.recent).view(self._pos.shape)
        self._move(mask, table, leaving)
        self.start = start
        return leaving

    def _move(self, mask: Tensor, table: Tensor, leaving: int) -> None:
        """Survivors of the leaving rows take the places of dropped rows, head by head."""
        survivors, holes = mask[..., :leaving], ~mask[..., leaving:]
        layer, head, row = survivors.nonzero(as_tuple=True)
        _, hole_head, hole = holes.nonzero(as_tuple=True)
        block = self.group.tier.block
        to = hole + leaving
        sources = table[head, row // block] * block + row % block
        targets = table[hole_head, to // block] * block + to % block
        offsets = torch.zeros(len(self.group.names) + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(layer, minlength=len(self.group.names)), 0, out=offsets[1:])
        self.group.move(sources, targets, offsets)
        for name in ("_pos", "_sums"):
            rows: Tensor | None = getattr(self, name)
            if rows is not None:
                stay = rows[..., leaving:].clone()
                stay[holes] = rows[..., :leaving][survivors]
                setattr(self, name, stay)
