"""Heads of one layer that keep different numbers of rows: blocks are shared out to heads, not just to requests.

A block of a layer holds ``H`` head blocks, one per KV head. New tokens fill them in the regular way. At an event the
head blocks of the pages that stay are dealt out anew: head `h` gets ``m[h]`` of them, full to the last row, and behind
them come its regular ones, from the page on that is being filled. So a layer's memory is the same as with equal heads,
whoever has it. Attention then sees every head as a sequence of its own (`ragged_step`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.observe import weighed
from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.kv_cache.per_head import blocks_per_head
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask

_Moves = tuple[list[Tensor], list[Tensor]]


class RaggedRows:
    """Like `CachedRows`, for heads of different lengths. ``whole``: per layer of the group, heads that keep all."""

    def __init__(
        self, plan: Plan, group: GroupLayers, whole: Sequence[Sequence[int]], rope: Rope | None, seed: int, layers: int
    ) -> None:
        self.plan, self.group, self.whole = plan, group, whole
        self.rope, self.seed, self.layers = rope, seed, layers
        self.window = plan.window(group.tier)
        self.start = 0
        self.page = 0  # first regular page
        shape = (len(group.names), group.heads)
        self.counts = torch.zeros(shape, dtype=torch.int64)  # [L, H] head blocks before the regular pages
        self._dealt = torch.zeros(*shape, 0, dtype=torch.int64)  # [L, H, most] these head blocks
        none = torch.empty(0, dtype=torch.int64)
        self._pos = [[none] * group.heads for _ in group.names]
        self._sums = [[none.float()] * group.heads for _ in group.names] if plan.method.observes else None
        self._length = 0

    @property
    def ragged(self) -> bool:
        """Whether heads differ: not before the first event."""
        return self.page > 0

    def grow(self, length: int) -> None:
        """Account for the rows of the tokens up to `length`: each new token is in its regular slot."""
        more = length - self._length
        if more <= 0:
            return
        new = torch.arange(self._length, length)
        self._pos = [[torch.cat((pos, new)) for pos in heads] for heads in self._pos]
        if self._sums is not None:
            zeros = torch.zeros(more)
            self._sums = [[torch.cat((sums, zeros)) for sums in heads] for heads in self._sums]
        self._length = length

    def tables(self, blocks: Tensor) -> Tensor:
        """``[L, H, W]`` head blocks of each head, in order, for block ids ``[nb]`` of the request from 0 on."""
        regular = self.group.head_blocks(blocks[self.page :])
        out = self._dealt.new_zeros(*self.counts.shape, self._dealt.shape[2] + regular.shape[1])
        out[..., : self._dealt.shape[2]] = self._dealt
        at = self.counts[..., None] + torch.arange(regular.shape[1])
        return out.scatter_(2, at, regular.expand_as(at))

    def lengths(self, computed: int) -> Tensor:
        """``[L, H]`` rows of each head once `computed` tokens are in the cache."""
        block = self.group.tier.block
        return self.counts * block + (computed - self.page * block)

    def _rows(self, layer: int, head: int, table: Tensor, length: int, keep: int, ring: QueryRing | None) -> Rows:
        method, group, pos = self.plan.method, self.group, self._pos[layer][head]
        queries = None
        if ring is not None and method.window:
            newest = ring.newest(group.indices[layer], length, min(ring.count, method.window), group.heads)
            queries = newest[head : head + 1]
        line = table[layer, head : head + 1]
        return Rows(
            pos=pos[None],
            length=length,
            prompt=self.plan.prompt,
            keep=keep,
            layer=group.indices[layer],
            layers=self.layers,
            first_head=head,
            scale=group.scales[layer],
            seed=self.seed,
            rope=self.rope,
            read_keys=lambda: group.read(layer, line, len(pos), keys=True),
            read_values=lambda: group.read(layer, line, len(pos), keys=False),
            queries=queries,
            sums=None if self._sums is None else self._sums[layer][head][None],
        )

    def observe(self, layer: int, blocks: Tensor, length: int, queries: Tensor, first: int) -> None:
        """Add what query rows say of the cached keys: ``queries [H, G, T, D]`` of the positions from `first` on."""
        assert self._sums is not None
        table = self.tables(blocks[: -(-length // self.group.tier.block)])
        for head in range(self.group.heads):
            rows = self._rows(layer, head, table, length, 0, None)
            seen = weighed(self.plan.method, rows, queries[head : head + 1], first)
            self._sums[layer][head] = self._sums[layer][head] + seen[0]

    def compact(self, blocks: Tensor, length: int, ring: QueryRing | None) -> int:
        """Let the blocks before the new window start go, if there is one; ``blocks [nb]`` of the request, from 0 on.

        Returns:
            Tokens that were dropped, in the mean over the heads.
        """
        start, block = self.window.start(length), self.group.tier.block
        leaving = start - self.start
        if leaving <= 0:
            return 0
        self.grow(length)
        table = self.tables(blocks[: -(-length // block)])
        first = blocks[start // block : length // block]  # the pages whose head blocks are dealt out
        pool = self.group.head_blocks(first)  # [H, pages]
        inside, across = _Pairs(), _Pairs()
        dealt = [self._deal(layer, table, pool, length, ring, inside, across) for layer in range(len(self.group.names))]
        self.group.move(*inside.joined())
        self.group.move(*across.joined())
        self.start, self.page = start, length // block
        self.counts = torch.tensor([[len(head) for head in heads] for heads in dealt])
        self._dealt = torch.zeros(*self.counts.shape, int(self.counts.max()), dtype=torch.int64)
        for layer, heads in enumerate(dealt):
            for head, mine in enumerate(heads):
                self._dealt[layer, head, : len(mine)] = mine
        return leaving

    def _deal(
        self, layer: int, table: Tensor, pool: Tensor, length: int, ring: QueryRing | None,
        inside: _Pairs, across: _Pairs,
    ) -> list[Tensor]:  # fmt: skip
        """New head blocks of each head of a layer; the moves that this takes are added to the pairs."""
        block, heads = self.group.tier.block, self.group.heads
        tail = length % block
        rows = [len(pos) - tail for pos in self._pos[layer]]
        whole = sum(rows[head] // block for head in self.whole[layer])
        keep = (pool.numel() - whole) // max(1, heads - len(self.whole[layer])) * block + tail
        score = torch.full((heads, max(rows)), -torch.inf)
        for head, count in enumerate(rows):
            if head not in self.whole[layer]:
                view = self._rows(layer, head, table, length, keep, ring)
                score[head, :count] = self.plan.method.score(view)[0, :count]
        shares = self._shares(layer, score, rows, pool.numel(), length)
        stays = torch.isin(table[layer], pool.flatten())
        dealt: list[Tensor] = []
        free: list[Tensor] = []
        for head, share in enumerate(shares):
            owned = table[layer, head, : rows[head] // block]
            mine = owned[stays[head, : len(owned)]]
            dealt.append(mine[:share])
            free.append(mine[share:])
        spare = torch.cat(free)
        used = 0
        for head, share in enumerate(shares):
            mine, need = dealt[head], share - len(dealt[head])
            fresh = spare[used : used + need]
            used += need
            dealt[head] = torch.cat((mine, fresh))
            owned = table[layer, head, : rows[head] // block]
            pairs = across if need else inside
            self._place(layer, head, owned, mine, fresh, score[head], share * block, length, pairs)
        inside.close()
        across.close()
        return dealt

    def _shares(self, layer: int, score: Tensor, rows: Sequence[int], total: int, length: int) -> list[int]:
        """Head blocks of each head: `total` in all, none gets more than it can fill."""
        block = self.group.tier.block
        most = [count // block for count in rows]
        whole = set(self.whole[layer])
        others = [head for head in range(len(rows)) if head not in whole]
        shares = [most[head] if head in whole else 0 for head in range(len(rows))]
        left = total - sum(shares)
        if self.plan.per_head:
            pos = torch.nn.utils.rnn.pad_sequence(
                [self._pos[layer][head][: rows[head]] for head in others], batch_first=True, padding_value=-1
            )
            kept = (pos >= 0) & ((pos < self.plan.sinks) | (pos >= length - self.plan.recent))
            wanted = blocks_per_head(score[others][:, : pos.shape[1]], kept, left, block).tolist()
        else:
            wanted = [left // len(others) + (i < left % len(others)) for i in range(len(others))]
        for head, share in zip(others, wanted, strict=True):
            shares[head] = min(share, most[head])
        short = total - sum(shares)
        for head in others:  # what one head cannot fill goes to the next
            more = min(short, most[head] - shares[head])
            shares[head] += more
            short -= more
        assert short == 0
        return shares

    def _place(
        self, layer: int, head: int, owned: Tensor, mine: Tensor, fresh: Tensor, score: Tensor, keep: int, length: int,
        pairs: _Pairs,
    ) -> None:  # fmt: skip
        """Rows of a head that stay: where they are, or moved into the place of a dropped one or into a fresh block."""
        block, tail = self.group.tier.block, length % self.group.tier.block
        pos = self._pos[layer][head]
        old = pos[: len(pos) - tail]
        plan = self.plan
        mask = keep_mask(score[None, : len(old)], old[None], keep, length, plan.sinks, plan.recent)[0]
        index = torch.isin(owned, mine)  # [owned] head blocks that it keeps
        fixed = index.repeat_interleave(block)
        moving = (mask & ~fixed).nonzero().flatten()
        cells = (owned[:, None] * block + torch.arange(block)).flatten()
        new_cells = (torch.cat((mine, fresh))[:, None] * block + torch.arange(block)).flatten()
        empty = torch.cat((~mask[fixed], torch.ones(len(fresh) * block, dtype=torch.bool)))
        pairs.add(cells[moving], new_cells[empty])
        for name in ("_pos", "_sums"):
            lists = getattr(self, name)
            if lists is None:
                continue
            values = lists[layer][head]
            stay = values.new_empty(keep)
            stay[~empty] = values[: len(old)][fixed][mask[fixed]]
            stay[empty] = values[moving]
            lists[layer][head] = torch.cat((stay, values[len(old) :]))


class _Pairs:
    """Moves of all layers, in order."""

    def __init__(self) -> None:
        self._sources: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        self._targets: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        self._ends = [0]
        self._count = 0

    def add(self, sources: Tensor, targets: Tensor) -> None:
        assert len(sources) == len(targets)
        self._sources.append(sources)
        self._targets.append(targets)
        self._count += len(sources)

    def close(self) -> None:
        """The layer is done."""
        self._ends.append(self._count)

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.cat(self._sources), torch.cat(self._targets), torch.tensor(self._ends)
