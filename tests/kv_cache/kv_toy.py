"""One layer's cache of one request, held the slow way: it grows, is compressed, and its rows change places."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask

HEADS, GROUP, CHANNELS = 2, 2, 8
ROPE = Rope(torch.tensor([1.0, 0.2, 0.04]))  # the last two channels stay as they are


class Toy:
    def __init__(self, method: Method, prompt: int, seed: int = 0, most: int = 1200, **facts: int) -> None:
        made = torch.Generator().manual_seed(seed)
        everywhere = torch.arange(most)
        self.method, self.prompt, self.facts = method, prompt, {"layer": 1, "layers": 6, "seed": seed, **facts}
        self.keys = ROPE.rotate(torch.randn(HEADS, most, CHANNELS, generator=made), everywhere)
        self.values = torch.randn(HEADS, most, CHANNELS, generator=made)
        self.queries = ROPE.rotate(2 * torch.randn(HEADS, GROUP, most, CHANNELS, generator=made), everywhere)
        self.pos = torch.empty(HEADS, 0, dtype=torch.int64)
        self.sums = torch.empty(HEADS, 0)
        self.length = 0

    def grow(self, count: int) -> None:
        """`count` tokens pass through the layer at once."""
        at = torch.arange(self.length, self.length + count)
        self.pos = torch.cat((self.pos, at.expand(HEADS, count)), dim=1)
        self.sums = torch.cat((self.sums, torch.zeros(HEADS, count)), dim=1)
        self.length += count
        rows = self.rows(1)
        logits = torch.einsum("hgtd,hmd->hgtm", self.queries[:, :, at], rows.keys) * rows.scale
        logits.masked_fill_(self.pos[:, None, None] > at[:, None], -torch.inf)
        if self.method.observes:
            self.sums = self.sums + self.method.weigh(logits, rows, at).sum(dim=(1, 2))

    def rows(self, keep: int) -> Rows:
        head = torch.arange(HEADS)[:, None]
        window = min(self.method.window, self.length)
        return Rows(
            pos=self.pos,
            length=self.length,
            prompt=self.prompt,
            keep=keep,
            scale=CHANNELS**-0.5,
            rope=ROPE,
            read_keys=lambda: self.keys[head, self.pos],
            read_values=lambda: self.values[head, self.pos],
            queries=self.queries[:, :, self.length - window : self.length] if window else None,
            sums=self.sums if self.method.observes else None,
            **self.facts,
        )  # fmt: skip

    def mask(self, keep: int, sinks: int = 0, recent: int = 0) -> Tensor:
        score = self.method.score(self.rows(keep))
        assert score.shape == self.pos.shape
        return keep_mask(score, self.pos, keep, self.length, sinks, recent)

    def compress(self, keep: int, sinks: int = 0, recent: int = 0) -> None:
        mask = self.mask(keep, sinks, recent)
        self.pos, self.sums = self.pos[mask].view(HEADS, -1), self.sums[mask].view(HEADS, -1)

    def shuffle(self, seed: int = 0) -> None:
        """Rows change their places, in every head otherwise."""
        made = torch.Generator().manual_seed(seed)
        order = torch.stack([torch.randperm(self.pos.shape[1], generator=made) for _ in range(HEADS)])
        self.pos, self.sums = self.pos.gather(1, order), self.sums.gather(1, order)

    def kept(self) -> list[list[int]]:
        """Positions in each head, oldest first."""
        return [sorted(row) for row in self.pos.tolist()]


def positions_only(pos: Tensor, keep: int, prompt: int, layer: int = 0, layers: int = 1, seed: int = 0) -> Rows:
    """Rows for a method that looks at nothing else."""
    rows = Rows(pos=pos, length=int(pos.max()) + 1, prompt=prompt, keep=keep)
    return replace(rows, layer=layer, layers=layers, seed=seed)
