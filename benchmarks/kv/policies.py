"""What is compared: a method of the registry, how rows are shared out, and which heads keep everything."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from thriftree.benchmarks.kv.blend import Blend
from thriftree.benchmarks.kv.lab import Evicted, Lab, Prefix
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.heads import HeadFile
from thriftree.plugins.kv_cache.per_head import blocks_per_head
from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rows
from thriftree.plugins.kv_cache.select import keep_mask

SINKS, RECENT = 4, 32
_BLOCK = 16  # of methods that read whole blocks
_TIERS = 4  # groups of layers with budgets of their own
_QUERIES = 128  # rows of attention at a time

Head = tuple[int, int]  # layer, KV head


@dataclass(frozen=True)
class Policy:
    """A row of the table."""

    name: str
    method: str | None = None  # None: keep everything
    options: dict[str, Any] = field(default_factory=dict)
    per_head: bool = False
    induction: int = 0  # heads that keep everything
    echo: int = 0
    control: int | None = None  # a seed: as many heads as that, but others, at random
    compensate: int | None = None  # a compensation row in heads that drop rows, from this layer on
    seed: int = 0
    aware: bool = False  # the question is in the cache when it is compressed

    @property
    def reads(self) -> bool:
        """Everything stays in the cache, and the budget is what a step reads."""
        return self.method in registry.names() and registry.describe(self.method or "").reads

    def made(self) -> Method:
        assert self.method is not None
        if self.method == "blend":
            return Blend(**self.options)
        return registry.configure(self.method, self.options)


class _Noted(Rows):
    """Rows that note whether a score depends on the budget: most do not, and need not be worked out again."""

    def __getattribute__(self, name: str) -> Any:
        if name == "keep":
            self.__dict__["read_budget"] = True
        return super().__getattribute__(name)


class Cache:
    """A prefix as methods see it; sums of attention are computed once for all that want the same."""

    def __init__(self, lab: Lab, prefix: Prefix) -> None:
        self.lab, self.prefix = lab, prefix
        self.pos = torch.arange(prefix.length).expand(lab.shape.kv_heads, -1)
        self._sums: dict[tuple[Callable[..., Tensor], Method | None, int], list[Tensor]] = {}
        self._scores: dict[tuple[Method, int, int], Tensor] = {}

    def score(self, layer: int, method: Method, keep: int, seed: int) -> Tensor:
        """``[H, N]``"""
        if (found := self._scores.get((method, layer, seed))) is not None:
            return found
        rows = self.rows(layer, method, keep, seed)
        score = method.score(rows)
        if "read_budget" not in vars(rows):
            self._scores[method, layer, seed] = score
        return score

    def rows(self, layer: int, method: Method, keep: int, seed: int) -> Rows:
        prefix = self.prefix
        made = _Noted(
            pos=self.pos,
            length=prefix.length,
            prompt=prefix.length,
            keep=keep,
            layer=layer,
            layers=self.lab.shape.layers,
            scale=prefix.scale,
            seed=seed,
            rope=self.lab.rope,
            read_keys=partial(prefix.keys.__getitem__, layer),
            read_values=partial(prefix.values.__getitem__, layer),
        )
        if method.window:
            made.queries = prefix.queries[layer][:, :, -method.window :]
        if method.observes:
            made.sums = self._observed(method, seed)[layer]
        return made

    def _observed(self, method: Method, seed: int) -> list[Tensor]:
        weigh = type(method).weigh
        key = (weigh, None, 0) if weigh is Method.weigh else (weigh, method, seed)
        if key not in self._sums:
            self._sums[key] = [self._layer_sums(method, layer, seed) for layer in range(self.lab.shape.layers)]
        return self._sums[key]

    def _layer_sums(self, method: Method, layer: int, seed: int) -> Tensor:
        prefix, total = self.prefix, torch.zeros(self.pos.shape)
        rows = Rows(self.pos, prefix.length, prefix.length, prefix.length, layer, self.lab.shape.layers, seed=seed)
        for start in range(0, prefix.length, _QUERIES):
            at = torch.arange(start, min(start + _QUERIES, prefix.length))
            logits = prefix.queries[layer][:, :, at] @ prefix.keys[layer][:, None].mT * prefix.scale
            logits.masked_fill_(self.pos[0] > at[:, None], -torch.inf)
            total += method.weigh(logits, rows, at).nan_to_num_(0.0).sum(dim=(1, 2))
        return total


def evicted(policy: Policy, cache: Cache, keep: float, file: HeadFile) -> Evicted:
    """The cache under `policy` with ``ceil(keep * N)`` rows per layer and head, counted over all of them."""
    shape, length = cache.lab.shape, cache.prefix.length
    mask = torch.ones(shape.layers, shape.kv_heads, length, dtype=torch.bool)
    if policy.method is None or keep >= 1.0:
        return Evicted(mask[None])
    method = policy.made()
    whole = affordable(chosen(policy, file), shape.layers * shape.kv_heads, length, keep)
    budgets = _budgets(method, policy, whole, cache, keep)
    for layer, budget in enumerate(budgets):
        others = [head for head in range(shape.kv_heads) if (layer, head) not in whole]
        if others:
            mask[layer, others] = _layer(policy, method, cache, layer, budget, others)
    return Evicted(mask[None], _compensation(policy, cache, mask))


def _layer(policy: Policy, method: Method, cache: Cache, layer: int, budget: int, others: list[int]) -> Tensor:
    """``[len(others), N]``"""
    score, pos = cache.score(layer, method, budget, policy.seed)[others], cache.pos[others]
    rest = cache.prefix.length
    if isinstance(method, ReadMethod):
        return _read(method, score, budget)
    if not policy.per_head:
        return keep_mask(score, pos, budget, rest, SINKS, RECENT)
    safe = (pos < SINKS) | (pos >= rest - RECENT)
    return keep_mask(score, pos, blocks_per_head(score, safe, budget * len(others), 1), rest, SINKS, RECENT)


def _read(method: ReadMethod, score: Tensor, budget: int) -> Tensor:
    """As the engine reads: whole blocks of each head, and the block that is not full yet."""
    heads, length = score.shape
    pages = length // _BLOCK
    weight = score[:, : pages * _BLOCK].unflatten(1, (pages, _BLOCK)).sum(dim=2)
    sinks, recent = -(-SINKS // _BLOCK), -(-max(0, RECENT - length % _BLOCK) // _BLOCK)
    most = (budget - length % _BLOCK) // _BLOCK
    count = method.blocks(weight, most).clamp(min=min(sinks + recent, pages))
    number = torch.arange(pages).expand(heads, pages)
    picked = keep_mask(weight, number, count, pages, sinks, recent).repeat_interleave(_BLOCK, dim=1)
    return torch.cat((picked, torch.ones(heads, length % _BLOCK, dtype=torch.bool)), dim=1)


def chosen(policy: Policy, file: HeadFile) -> list[Head]:
    """The heads that a policy wants to keep whole, the most important first."""
    probed = file.ranked(policy.induction, policy.echo)
    if policy.control is None:
        return probed
    shape = file.fingerprint
    rest = [(layer, head) for layer in range(shape.layers) for head in range(shape.kv_heads)]
    return random.Random(policy.control).sample([head for head in rest if head not in probed], len(probed))


def affordable(heads: list[Head], total: int, length: int, keep: float) -> set[Head]:
    """As many as leave the others room for sinks and recent rows."""
    count = len(heads)
    while count and _left(count, total, length, keep) < SINKS + RECENT:
        count -= 1
    return set(heads[:count])


def _left(whole: int, total: int, length: int, keep: float) -> int:
    """Rows of each other head when `whole` heads of `total` keep everything: the sum is that of equal budgets."""
    return (total * ceil(keep * length) - whole * length) // (total - whole)


def _budgets(method: Method, policy: Policy, whole: set[Head], cache: Cache, keep: float) -> list[int]:
    """Rows of each head that is not whole, by layer."""
    shape, length = cache.lab.shape, cache.prefix.length
    others = [shape.kv_heads - sum(layer == of for of, _ in whole) for layer in range(shape.layers)]
    left = _left(len(whole), shape.layers * shape.kv_heads, length, keep)
    shares = [method.share(layer * _TIERS // shape.layers, _TIERS) for layer in range(shape.layers)]
    made = spread(left * sum(others), shares, others, min(SINKS + RECENT, left), length)
    first = shape.layers if policy.compensate is None else policy.compensate
    return [rows - (layer >= first and rows < length) for layer, rows in enumerate(made)]  # a row is a row


def spread(total: int, shares: list[float], heads: list[int], least: int, most: int) -> list[int]:
    """Rows of each of a layer's `heads`, in proportion to `shares` but within [least, most]; `total` at most in all."""
    low, high = 0.0, most / min(shares)
    for _ in range(60):  # the sum grows with the unit
        unit = (low + high) / 2
        parts = [min(max(share * unit, least), most) for share in shares]
        fits = sum(part * count for part, count in zip(parts, heads, strict=True)) <= total
        low, high = (unit, high) if fits else (low, unit)
    return [int(min(max(share * low, least), most) + 1e-6) for share in shares]


def _compensation(policy: Policy, cache: Cache, mask: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    if policy.compensate is None:
        return None
    gone = (~mask).float()
    gone[: policy.compensate] = 0.0
    count = gone.sum(dim=-1)
    share = gone / count.clamp_min(1.0)[..., None]
    keys, values = (
        torch.einsum("lhn,lhnd->lhd", share, torch.stack(x)) for x in (cache.prefix.keys, cache.prefix.values)
    )
    return keys[None], values[None], count.log()[None]


def together(made: list[Evicted]) -> Evicted:
    """Many caches for one pass."""
    keep = torch.cat([one.keep for one in made])
    if all(one.rows is None for one in made):
        return Evicted(keep)
    like = next(one.rows for one in made if one.rows is not None)
    none = (torch.zeros_like(like[0]), torch.zeros_like(like[1]), torch.full_like(like[2], -torch.inf))
    rows = [one.rows or none for one in made]
    key, value, weight = (torch.cat([row[i] for row in rows]) for i in range(3))
    return Evicted(keep, (key, value, weight))
