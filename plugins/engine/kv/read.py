"""Read-side sparsity: the cache stays whole, and most steps attend to some of its blocks only.

A step that reads little goes the way of heads of different lengths (`ragged_step`): its tables hold the chosen blocks
and the pages since the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask


class ReadRows:
    """What the next steps of one request read in one group of layers."""

    def __init__(self, plan: Plan, group: GroupLayers, rope: Rope | None, seed: int, layers: int) -> None:
        self.plan, self.group = plan, group
        self.rope, self.seed, self.layers = rope, seed, layers
        self._page = 0  # first page that is read whole
        self._chosen: Tensor | None = None  # [L, H, most] page numbers, in order; None: the next step reads everything
        self._counts = torch.empty(0)

    @property
    def ragged(self) -> bool:
        return self._chosen is not None

    def tables(self, blocks: Tensor) -> Tensor:
        """``[L, H, W]`` head blocks that the next step reads, for block ids ``[nb]`` of the request."""
        assert self._chosen is not None
        heads = torch.arange(self.group.heads)[:, None]
        dealt = blocks.long()[self._chosen] * self.group.heads + heads
        regular = self.group.head_blocks(blocks[self._page :])
        out = dealt.new_zeros(*dealt.shape[:2], dealt.shape[2] + regular.shape[1])
        out[..., : dealt.shape[2]] = dealt
        at = self._counts[..., None] + torch.arange(regular.shape[1])
        return out.scatter_(2, at, regular.expand_as(at))

    def lengths(self, computed: int) -> Tensor:
        """``[L, H]`` rows that the next step reads of what is cached."""
        block = self.group.tier.block
        return self._counts * block + (computed - self._page * block)

    def read_all(self) -> None:
        self._chosen = None

    def choose(self, blocks: Tensor, length: int, ring: QueryRing) -> None:
        """After a full step: the blocks that its queries attend to. Where there are few blocks, all are read on."""
        method, block = self.plan.method, self.group.tier.block
        assert isinstance(method, ReadMethod)
        most, pages = self.plan.budget // block, length // block
        if pages <= most:
            return
        table = self.group.head_blocks(blocks[: -(-length // block)])
        number = torch.arange(pages).expand(self.group.heads, pages)
        sinks, recent = -(-self.plan.sinks // block), -(-max(0, self.plan.recent - length % block) // block)
        picked, counts = [], []
        for layer, index in enumerate(self.group.indices):
            score = method.score(self._rows(layer, index, table, length, ring))
            weight = score[:, : pages * block].unflatten(1, (pages, block)).sum(2)
            count = method.blocks(weight, most).clamp(min=min(sinks + recent + 1, pages))
            picked.append(keep_mask(weight, number, count, pages, sinks, recent))
            counts.append(count)
        self._counts = torch.stack(counts)
        width = int(self._counts.max())
        order = torch.stack(picked).to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        inside = torch.arange(width) < self._counts[..., None]
        self._chosen = order[..., :width].where(inside, 0)
        self._page = pages

    def _rows(self, layer: int, index: int, table: Tensor, length: int, ring: QueryRing) -> Rows:
        group, heads = self.group, self.group.heads
        return Rows(
            pos=torch.arange(length).expand(heads, length),
            length=length,
            layer=index,
            scale=group.scales[layer],
            read_keys=lambda: group.read(layer, table, length, keys=True),
            read_values=lambda: group.read(layer, table, length, keys=False),
            queries=ring.newest(index, length, min(ring.count, self.plan.method.window), heads),
            prompt=self.plan.prompt,
            keep=self.plan.budget,
            layers=self.layers,
            first_head=group.first_head,
            rope=self.rope,
            seed=self.seed,
        )


class Reading:
    """When the layers of one request read everything. Counted in tokens, so that drafts do not shift it."""

    def __init__(self, method: ReadMethod, prompt: int, groups: Sequence[ReadRows]) -> None:
        self._method, self._prompt, self._groups = method, prompt, groups
        self._full_at = 0  # tokens when the last full step was over
        self._query: Tensor | None = None  # [L, heads, D] that it chose by

    def after(self, length: int, blocks: Callable[[int], Tensor], ring: QueryRing) -> None:
        """After a step that left `length` tokens in the cache."""
        if length < self._prompt:
            return
        if not any(rows.ragged for rows in self._groups):
            self._full_at, self._query = length, ring.last(length)
            for g, rows in enumerate(self._groups):
                rows.choose(blocks(g), length, ring)
        elif length >= self._full_at + self._method.stride - 1 or self._turned(length, ring):
            for rows in self._groups:
                rows.read_all()

    def _turned(self, length: int, ring: QueryRing) -> bool:
        every, since = self._method.checks(), length - self._full_at
        if not every or since % every:
            return False
        assert self._query is not None
        return self._method.stale(self._query, ring.last(length))

    def levels(self, length: int) -> int:
        """Draft levels that a request of `length` tokens, the last not cached yet, may accept in the next step."""
        if length <= self._prompt or not any(rows.ragged for rows in self._groups):
            return 0
        due, every = self._full_at + self._method.stride - 1, self._method.checks()
        if every:
            due = min(due, self._full_at + -(-(length - self._full_at) // every) * every)
        return due - length
