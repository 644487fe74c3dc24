"""A Llama in plain torch that drops cached rows as a method says: what a compressed request must equal.

It keeps every head's rows as plain tensors in the order of their positions (the engine: in slot order, in paged
blocks), and follows the engine's schedule step by step, since what survives depends on where chunks end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from thriftree.plugins.engine.kv.plan import Plan, Tier
from thriftree.plugins.kv_cache.per_head import blocks_per_head
from thriftree.plugins.kv_cache.reading import ReadMethod
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask


@dataclass
class Head:
    """The rows of one KV head, oldest first."""

    pos: Tensor  # [M]
    keys: Tensor  # [M, D]
    values: Tensor
    sums: Tensor  # [M]

    def take(self, kept: Tensor) -> None:
        self.pos, self.keys, self.values = self.pos[kept], self.keys[kept], self.values[kept]
        self.sums = self.sums[kept]


@dataclass(frozen=True)
class Place:
    """What the engine knows of a layer."""

    tier: Tier
    whole: tuple[int, ...]  # retrieval heads


def load(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@dataclass
class Reference:
    """One request."""

    model: Any
    plan: Plan | None
    places: Sequence[Place]
    evicts: bool = True
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None  # rows of places in the text; None: as in any Llama
    layers: list[list[Head]] = field(default_factory=list)
    length: int = 0
    flips: int = 0  # choices between rows that score alike, where rounding decided otherwise in the engine

    def __post_init__(self) -> None:
        c = self.model.config.get_text_config()
        self.body = getattr(self.model.model, "language_model", self.model.model)
        self.heads, self.group = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
        self.dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.rope = Rope(self.body.rotary_emb.inv_freq.float())
        self.turn = self.rotate or self.rope.rotate
        empty = torch.empty(0, self.dim)
        none = torch.empty(0)
        for _ in self.places:
            self.layers.append([Head(none.long(), empty, empty, none) for _ in range(self.heads)])
        self.queries = [torch.empty(self.heads, self.group, 0, self.dim) for _ in self.places]
        self.starts = [0] * len(self.places)
        self.reading: list[list[Tensor]] | None = None  # positions that each head of each layer reads, of the old ones
        self.full_at, self.chose_by = 0, torch.empty(0)

    @torch.no_grad()
    def step(self, x: Tensor, chosen: list[list[list[Tensor]]]) -> Tensor:
        """Log-probabilities ``[n, vocabulary]`` after each of the rows ``x [n, hidden]``; then the events that are due.

        `chosen`: for each layer, what the engine kept at its events so far (positions of each head, sorted).
        """
        at = torch.arange(self.length, self.length + len(x))
        for index, weights in enumerate(self.body.layers):
            x = x + self._attend(weights.self_attn, weights.input_layernorm(x), index, at)
            x = x + weights.mlp(weights.post_attention_layernorm(x))
        self.length += len(x)
        if self.plan is not None and isinstance(self.plan.method, ReadMethod):
            if self.evicts:
                self._choose(self.plan.method)
        else:
            for index in range(len(self.layers)):
                self._event(index, chosen[index])
        return self.model.lm_head(self.body.norm(x)).float().log_softmax(-1)

    def _attend(self, a: Any, x: Tensor, index: int, at: Tensor) -> Tensor:
        q = self.turn(a.q_proj(x).view(-1, self.heads, self.group, self.dim).permute(1, 2, 0, 3), at)
        k = self.turn(a.k_proj(x).view(-1, self.heads, self.dim).transpose(0, 1), at)
        v = a.v_proj(x).view(-1, self.heads, self.dim).transpose(0, 1)
        self.queries[index] = torch.cat((self.queries[index], q), 2)
        outs = []
        for h, head in enumerate(self.layers[index]):
            head.keys, head.values = torch.cat((head.keys, k[h])), torch.cat((head.values, v[h]))
            head.pos = torch.cat((head.pos, at))
            head.sums = torch.cat((head.sums, torch.zeros(len(at))))
            logits = (q[h] @ head.keys.T) * self.dim**-0.5
            logits = logits.masked_fill(head.pos > at[:, None], -torch.inf)
            if self.reading is not None:
                old = head.pos < self.read_from
                logits = logits.masked_fill(old & ~torch.isin(head.pos, self.reading[index][h]), -torch.inf)
            if self.plan is not None and self.plan.method.observes:
                weight = self.plan.method.weigh(logits[None], self._rows(index, [h], 0), at)
                head.sums = head.sums + weight[0].sum((0, 1))
            outs.append(logits.softmax(-1) @ head.values)
        return a.o_proj(torch.stack(outs).permute(2, 0, 1, 3).flatten(1))

    def _rows(self, index: int, heads: Sequence[int], keep: int) -> Rows:
        plan, mine = self.plan, [self.layers[index][h] for h in heads]
        assert plan is not None
        window, first = plan.method.window, heads[0]
        queries = self.queries[index][first : first + len(heads)]
        return Rows(
            pos=torch.stack([head.pos for head in mine]), length=self.length, prompt=plan.prompt, keep=keep,
            layer=index, layers=len(self.layers), first_head=first, scale=self.dim**-0.5, rope=self.rope,
            read_keys=lambda: torch.stack([head.keys for head in mine]),
            read_values=lambda: torch.stack([head.values for head in mine]),
            queries=queries[:, :, -window:] if window else None, sums=torch.stack([head.sums for head in mine]),
        )  # fmt: skip

    def _choose(self, method: ReadMethod) -> None:
        """What the next steps read: everything, or some blocks and the pages since."""
        assert self.plan is not None
        if self.length < self.plan.prompt:
            return
        query = torch.stack([queries[:, :, -1] for queries in self.queries])
        if self.reading is not None:
            since, every = self.length - self.full_at, method.checks()
            if since >= method.stride - 1 or (every and since % every == 0 and method.stale(self.chose_by, query)):
                self.reading = None
            return
        self.full_at, self.chose_by = self.length, query
        block = self.places[0].tier.block
        pages, most = self.length // block, self.plan.budget // block
        if pages <= most:
            return
        self.reading, self.read_from = [], pages * block
        forced = {*range(-(-self.plan.sinks // block))}
        forced |= {p for p in range(pages) if (p + 1) * block > self.length - self.plan.recent}
        for index in range(len(self.layers)):
            score = method.score(self._rows(index, range(self.heads), self.plan.budget))
            weight = torch.stack([score[:, p * block : (p + 1) * block].sum(1) for p in range(pages)], 1)
            counts = method.blocks(weight, most).clamp(min=min(len(forced) + 1, pages)).tolist()
            heads = []
            for h, count in enumerate(counts):
                rank = sorted(range(pages), key=lambda p: (p not in forced, -float(weight[h, p]), -p))
                heads.append(torch.cat([torch.arange(p * block, (p + 1) * block) for p in rank[:count]]))
            self.reading.append(heads)

    def _event(self, index: int, chosen: list[list[Tensor]]) -> None:
        if self.plan is None or not self.evicts:
            return
        place, plan = self.places[index], self.plan
        start = plan.window(place.tier).start(self.length)
        if start <= self.starts[index]:
            return
        self.starts[index] = start
        whole = place.whole if plan.method.retrieval else ()
        ragged = plan.per_head or any(p.whole for p in self.places if p.tier == place.tier and plan.method.retrieval)
        score, keep = self._unequal(index, start, whole) if ragged else self._equal(index, start)
        theirs = chosen.pop(0)
        for h, head in enumerate(self.layers[index]):
            if h in whole:
                assert torch.equal(theirs[h], head.pos)
                continue
            mask = keep_mask(score[h][None], head.pos[None], keep[h], self.length, plan.sinks, plan.recent)[0]
            head.take(self._follow(score[h], head.pos, mask.nonzero().flatten(), theirs[h]))

    def _equal(self, index: int, start: int) -> tuple[Sequence[Tensor], list[int]]:
        keep = self.length - start
        assert self.plan is not None
        return self.plan.method.score(self._rows(index, range(self.heads), keep)).unbind(), [keep] * self.heads

    def _unequal(self, index: int, start: int, whole: Sequence[int]) -> tuple[list[Tensor], list[int]]:
        """Scores and rows of each head: whole blocks, and the newest page, which everyone keeps."""
        plan, block, heads = self.plan, self.places[index].tier.block, self.layers[index]
        assert plan is not None
        tail = self.length % block
        old = [(len(head.pos) - tail) // block for head in heads]  # blocks of each head
        total = (self.length // block - start // block) * self.heads - sum(old[h] for h in whole)
        others = [h for h in range(self.heads) if h not in whole]
        score = [torch.zeros(len(head.pos)) for head in heads]
        for h in others:
            score[h] = plan.method.score(self._rows(index, [h], total // len(others) * block + tail))[0].clone()
            score[h][len(score[h]) - tail :] = torch.inf
        if plan.per_head:
            most = max(old)
            pos = torch.stack(
                [
                    torch.nn.functional.pad(heads[h].pos[: old[h] * block], (0, (most - old[h]) * block), value=-1)
                    for h in others
                ]
            )
            padded = torch.stack(
                [
                    torch.nn.functional.pad(score[h][: old[h] * block], (0, (most - old[h]) * block), value=-torch.inf)
                    for h in others
                ]
            )
            kept = (pos >= 0) & ((pos < plan.sinks) | (pos >= self.length - plan.recent))
            shares = blocks_per_head(padded, kept, total, block).tolist()
        else:
            shares = [total // len(others) + (i < total % len(others)) for i in range(len(others))]
        counts = dict(zip(others, shares, strict=True))
        counts = {h: min(n, old[h]) for h, n in counts.items()}
        for h in others:
            counts[h] += min(total - sum(counts.values()), old[h] - counts[h])
        return score, [counts.get(h, old[h]) * block + tail for h in range(self.heads)]

    def _follow(self, score: Tensor, pos: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
        """The engine's choice, which may differ from ours in rows that score alike and in no others."""
        other = torch.isin(pos, theirs).nonzero().flatten()
        assert len(other) == len(mine) == len(theirs), "a head kept another number of rows"
        only_mine, only_theirs = mine[~torch.isin(mine, other)], other[~torch.isin(other, mine)]
        if len(only_mine):
            self.flips += len(only_mine)
            gap = float(score[only_mine].max() - score[only_theirs].min())
            assert gap <= 5e-3 * float(score[mine].abs().median()), f"kept other rows, {gap} apart"
        return other
