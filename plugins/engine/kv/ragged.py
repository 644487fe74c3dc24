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

from thriftree.plugins.engine.kv.deal import Deal
from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.observe import weighed
from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.kv_cache.per_head import blocks_per_head
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask

_WORST = torch.finfo(torch.float32).min


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
        none = torch.empty(0, dtype=torch.int32)
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
        new = torch.arange(self._length, length, dtype=torch.int32)
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
            pos=pos[None].long(),
            length=length,
            prompt=self.plan.prompt,
            keep=keep,
            layer=group.indices[layer],
            layers=self.layers,
            first_head=group.first_head + head,
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
        regular = blocks[: -(-length // block)]
        table = self.tables(regular)
        stay = blocks[start // block : length // block]  # the pages whose head blocks are dealt out
        rows = self.lengths(length) - length % block  # [L, H] what is in full blocks
        score = self._scores(table, rows, len(stay) * self.group.heads, length, ring)
        pos = _padded(self._pos, rows, self.plan.sinks)
        shares = self._shares(score, pos, rows, len(stay) * self.group.heads, length)
        there = torch.arange(pos.shape[2]) < rows[..., None]
        score = score.nan_to_num_(_WORST, torch.inf, _WORST).masked_fill_(~there, -torch.inf)
        mask = keep_mask(
            score.flatten(0, 1),
            pos.flatten(0, 1),
            (shares * block).flatten(),
            length,
            self.plan.sinks,
            self.plan.recent,
        )
        table = table[..., : pos.shape[2] // block]
        stays = there[..., ::block] & torch.isin(table, self.group.head_blocks(stay))
        deal = Deal.of(table, stays, shares, mask.view_as(pos), block)
        for moves in deal.moves(table):
            self.group.move(*moves)
        self._pos = _joined(deal.arranged(pos), shares * block, self._pos, rows)
        if self._sums is not None:
            sums = deal.arranged(_padded(self._sums, rows, 0))
            self._sums = _joined(sums, shares * block, self._sums, rows)
        self.start, self.page = start, length // block
        self.counts, self._dealt = shares, deal.dealt
        return leaving

    def _scores(self, table: Tensor, rows: Tensor, pool: int, length: int, ring: QueryRing | None) -> Tensor:
        """``[L, H, most rows]``; -inf where a head has no row."""
        block, heads, counts = self.group.tier.block, self.group.heads, rows.tolist()
        score = torch.full((*rows.shape, int(rows.max())), -torch.inf)
        for layer, whole in enumerate(self.whole):
            left = pool - sum(counts[layer][head] // block for head in whole)
            keep = left // max(1, heads - len(whole)) * block + length % block
            for head, count in enumerate(counts[layer]):
                if head in whole:
                    score[layer, head, :count] = 0.0
                    continue
                view = self._rows(layer, head, table, length, keep, ring)
                score[layer, head, :count] = self.plan.method.score(view)[0, :count].nan_to_num_(
                    _WORST, torch.inf, _WORST
                )
        return score

    def _shares(self, score: Tensor, pos: Tensor, rows: Tensor, total: int, length: int) -> Tensor:
        """``[L, H]`` head blocks of each head: `total` in a layer, none gets more than it can fill."""
        most = (rows // self.group.tier.block).tolist()
        return torch.tensor(
            [self._shares_of(layer, score[layer], pos[layer], most[layer], total, length) for layer in range(len(most))]
        )

    def _shares_of(
        self, layer: int, score: Tensor, pos: Tensor, most: Sequence[int], total: int, length: int
    ) -> list[int]:
        whole = set(self.whole[layer])
        others = [head for head in range(len(most)) if head not in whole]
        shares = [most[head] if head in whole else 0 for head in range(len(most))]
        left = total - sum(shares)
        if self.plan.per_head:
            block, width = self.group.tier.block, max(most[head] for head in others) * self.group.tier.block
            there = torch.arange(width) < torch.tensor([most[head] * block for head in others])[:, None]
            mine = pos[others, :width]
            kept = there & ((mine < self.plan.sinks) | (mine >= length - self.plan.recent))
            wanted = blocks_per_head(score[others, :width], kept, left, block).tolist()
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


def _padded(lists: Sequence[Sequence[Tensor]], rows: Tensor, fill: int) -> Tensor:
    """``[L, H, most rows]`` of the first ``rows [L, H]`` values of each head."""
    out = lists[0][0].new_full((*rows.shape, int(rows.max())), fill)
    for layer, counts in enumerate(rows.tolist()):
        for head, count in enumerate(counts):
            out[layer, head, :count] = lists[layer][head][:count]
    return out


def _joined(new: Tensor, counts: Tensor, old: Sequence[Sequence[Tensor]], rows: Tensor) -> list[list[Tensor]]:
    """The first ``counts [L, H]`` values of each head, and behind them what it had after its first `rows`."""
    pairs = zip(counts.tolist(), rows.tolist(), strict=True)
    return [
        [torch.cat((new[i, h, :n], old[i][h][m:])) for h, (n, m) in enumerate(zip(*both, strict=True))]
        for i, both in enumerate(pairs)
    ]
