"""A Llama in plain torch that drops cached rows as a method says: what a compressed request must equal.

It keeps every head's rows as plain tensors in the order of their positions (the engine: in slot order, in paged
blocks), and follows the engine's schedule step by step, since what survives depends on where chunks end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from thriftree.plugins.engine.kv.plan import Plan, Tier
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask


@dataclass
class Layer:
    pos: Tensor  # [H, M]
    keys: Tensor  # [H, M, D]
    values: Tensor
    queries: Tensor  # [H, G, all, D]
    sums: Tensor  # [H, M]


@dataclass
class Reference:
    """One request."""

    model: Any
    plan: Plan | None
    tier: Tier
    evicts: bool = True
    layers: list[Layer] = field(default_factory=list)
    length: int = 0
    start: int = 0
    flips: int = 0  # choices between rows that score alike, where rounding decided otherwise in the engine

    @classmethod
    def load(cls, path: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def __post_init__(self) -> None:
        c = self.model.config
        self.heads, self.group = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
        self.dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.rope = Rope(self.model.model.rotary_emb.inv_freq.float())
        empty = torch.empty(self.heads, 0, self.dim)
        none = torch.empty(self.heads, 0)
        for _ in range(c.num_hidden_layers):
            queries = torch.empty(self.heads, self.group, 0, self.dim)
            self.layers.append(Layer(none.long(), empty, empty, queries, none))

    @torch.no_grad()
    def step(self, tokens: list[int], chosen: list[Tensor] | None = None) -> Tensor:
        """Log-probabilities ``[n, vocabulary]`` after each of these tokens; then the event, if one is due.

        `chosen`: what the engine kept at its events so far (positions ``[layers, heads, rows]``, sorted).
        """
        body = self.model.model
        x = body.embed_tokens(torch.tensor(tokens))
        at = torch.arange(self.length, self.length + len(tokens))
        for index, weights in enumerate(body.layers):
            x = x + self._attend(weights.self_attn, weights.input_layernorm(x), index, at)
            x = x + weights.mlp(weights.post_attention_layernorm(x))
        self.length += len(tokens)
        self._event(chosen)
        return self.model.lm_head(body.norm(x)).float().log_softmax(-1)

    def _attend(self, a: Any, x: Tensor, index: int, at: Tensor) -> Tensor:
        layer = self.layers[index]
        q = self.rope.rotate(a.q_proj(x).view(-1, self.heads, self.group, self.dim).permute(1, 2, 0, 3), at)
        k = self.rope.rotate(a.k_proj(x).view(-1, self.heads, self.dim).transpose(0, 1), at)
        v = a.v_proj(x).view(-1, self.heads, self.dim).transpose(0, 1)
        layer.keys, layer.values = torch.cat((layer.keys, k), 1), torch.cat((layer.values, v), 1)
        layer.pos = torch.cat((layer.pos, at.expand(self.heads, -1)), 1)
        layer.sums = torch.cat((layer.sums, torch.zeros(self.heads, len(at))), 1)
        layer.queries = torch.cat((layer.queries, q), 2)
        logits = torch.einsum("hgtd,hmd->hgtm", q, layer.keys) * self.dim**-0.5
        logits = logits.masked_fill(layer.pos[:, None, None] > at[:, None], -torch.inf)
        if self.plan is not None and self.plan.method.observes:
            rows = self._rows(index, 0)
            layer.sums = layer.sums + self.plan.method.weigh(logits, rows, at).sum((1, 2))
        out = torch.einsum("hgtm,hmd->thgd", logits.softmax(-1), layer.values)
        return a.o_proj(out.flatten(1))

    def _rows(self, index: int, keep: int) -> Rows:
        layer, plan = self.layers[index], self.plan
        assert plan is not None
        window = plan.method.window
        return Rows(
            pos=layer.pos, length=self.length, prompt=plan.prompt, keep=keep, layer=index, layers=len(self.layers),
            scale=self.dim**-0.5, rope=self.rope, read_keys=lambda: layer.keys, read_values=lambda: layer.values,
            queries=layer.queries[:, :, -window:] if window else None, sums=layer.sums,
        )  # fmt: skip

    def _event(self, chosen: list[Tensor] | None) -> None:
        if self.plan is None or not self.evicts:
            return
        start = self.plan.window(self.tier).start(self.length)
        if start <= self.start:
            return
        self.start = start
        keep = self.length - start
        theirs = None if chosen is None else chosen.pop(0)
        for index, layer in enumerate(self.layers):
            score = self.plan.method.score(self._rows(index, keep))
            mask = keep_mask(score, layer.pos, keep, self.length, self.plan.sinks, self.plan.recent)
            order = [row.nonzero().flatten() for row in mask]
            if theirs is not None:
                order = [self._follow(score[h], layer.pos[h], o, theirs[index, h]) for h, o in enumerate(order)]
            for name in ("pos", "keys", "values", "sums"):
                rows = getattr(layer, name)
                setattr(layer, name, torch.stack([rows[h, picked] for h, picked in enumerate(order)]))

    def _follow(self, score: Tensor, pos: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
        """The engine's choice, which may differ from ours in rows that score alike and in no others."""
        other = torch.isin(pos, theirs).nonzero().flatten()
        assert len(other) == len(mine), "a head kept another number of rows"
        only_mine, only_theirs = mine[~torch.isin(mine, other)], other[~torch.isin(other, mine)]
        if len(only_mine):
            self.flips += len(only_mine)
            gap = float(score[only_mine].max() - score[only_theirs].min())
            assert gap <= 5e-3 * float(score[mine].abs().median()), f"kept other rows, {gap} apart"
        return other
