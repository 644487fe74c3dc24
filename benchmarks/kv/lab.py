"""A model in plain torch: text is read once, and answers are scored under many evictions of its cache at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftree.plugins.kv_cache import hooked
from thriftree.plugins.kv_cache.heads import Fingerprint
from thriftree.plugins.kv_cache.hooked import Call

_LOGITS = 256  # rows of logits at a time


@dataclass
class Prefix:
    """What a text leaves in the cache, layer by layer, and the queries that wrote it."""

    length: int
    scale: float
    keys: list[Tensor]  # [H, N, D]
    values: list[Tensor]  # [H, N, D]
    queries: list[Tensor]  # [H, G, N, D]


@dataclass
class Evicted:
    """C different caches made of one prefix. What is dropped is masked, so positions stay what they were."""

    keep: Tensor  # [C, L, H, N] bool
    #: Of a compensation row: mean key and value of the dropped rows, and the logarithm of their number (-inf: no row).
    rows: tuple[Tensor, Tensor, Tensor] | None = None  # [C, L, H, D], [C, L, H, D], [C, L, H]


class Lab:
    """Holds a model. Texts are token ids."""

    def __init__(self, model: str) -> None:
        self.model: Any = hooked.load(model).requires_grad_(False)
        self.rope = hooked.rope(self.model)
        self.shape = Fingerprint.of(self.model.config)

    def prefill(self, ids: list[int]) -> Prefix:
        """Read a text."""
        prefix = Prefix(len(ids), 1.0, [], [], [])

        def attend(call: Call) -> Tensor:
            self._note(call, prefix)
            return _causal(call)

        self._forward(torch.tensor([ids]), 0, attend)
        return prefix

    def plain(self, ids: list[int]) -> Tensor:
        """``[N, hidden]`` of a text without a cache."""
        return self._forward(torch.tensor([ids]), 0, _causal)[0]

    def extend(self, prefix: Prefix, ids: list[int]) -> Prefix:
        """Read on, with everything in the cache."""
        longer = Prefix(prefix.length + len(ids), 1.0, [], [], [])
        everything = torch.ones(1, self.shape.layers, self.shape.kv_heads, prefix.length, dtype=torch.bool)

        def attend(call: Call) -> Tensor:
            self._note(call, longer)
            return _attend(call, prefix, Evicted(everything))

        self._forward(torch.tensor([ids]), prefix.length, attend)
        for old, new in ((prefix.keys, longer.keys), (prefix.values, longer.values), (prefix.queries, longer.queries)):
            new[:] = [torch.cat((a, b), dim=-2) for a, b in zip(old, new, strict=True)]
        return longer

    def read_on(self, prefix: Prefix, ids: list[int], evicted: Evicted) -> Tensor:
        """``[C, T, hidden]``: the same `ids` after each of the caches."""
        count = evicted.keep.shape[0]
        at = torch.tensor([ids]).expand(count, -1)
        return self._forward(at, prefix.length, lambda call: _attend(call, prefix, evicted))

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """``[..., vocabulary]`` of the next token."""
        rows = hidden.flatten(0, -2)
        head = self.model.get_output_embeddings()
        made = [head(part).log_softmax(dim=-1) for part in rows.split(_LOGITS)]
        return torch.cat(made).view(*hidden.shape[:-1], -1)

    def _note(self, call: Call, prefix: Prefix) -> None:
        if call.window is not None or call.cap is not None:
            raise ValueError("models with sliding windows or capped logits are not measured here")
        prefix.scale = call.scale
        prefix.keys.append(call.key[0])
        prefix.values.append(call.value[0])
        prefix.queries.append(call.query[0].unflatten(0, (call.key.shape[1], -1)))

    def _forward(self, ids: Tensor, start: int, attend: hooked.Attention) -> Tensor:
        at = torch.arange(start, start + ids.shape[1])[None]
        with torch.no_grad(), hooked.hooked(attend):
            found: Tensor = self.model.get_decoder()(input_ids=ids, position_ids=at, use_cache=False).last_hidden_state
        return found


def _causal(call: Call) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, is_causal=True, scale=call.scale, enable_gqa=True
    )


def _attend(call: Call, prefix: Prefix, evicted: Evicted) -> Tensor:
    """Every query sees what its cache has kept, and the new rows up to itself."""
    (count, _, new, dim), heads, old = call.query.shape, call.key.shape[1], prefix.length
    # [H, C, G * T, D]: all caches have the same rows, so one product per head does for all of them.
    query = call.query.reshape(count, heads, -1, dim).transpose(0, 1) * call.scale
    parts = [(query.reshape(heads, -1, dim) @ prefix.keys[call.layer].mT).view(heads, count, -1, old)]
    parts[0].masked_fill_(~evicted.keep[:, call.layer].transpose(0, 1)[:, :, None], -torch.inf)
    future = torch.ones(new, new, dtype=torch.bool).triu(1).repeat(query.shape[2] // new, 1)
    own_keys, own_values = (x.transpose(0, 1) for x in (call.key, call.value))
    parts.append((query @ own_keys.mT).masked_fill_(future, -torch.inf))
    if evicted.rows is not None:
        key, value, weight = (x[:, call.layer].transpose(0, 1) for x in evicted.rows)
        parts.append(query @ key[..., None] + weight[:, :, None, None])
    seen = torch.cat(parts, dim=-1).softmax(dim=-1)
    out = (seen[..., :old].reshape(heads, -1, old) @ prefix.values[call.layer]).view(query.shape)
    out += seen[..., old : old + new] @ own_values
    if evicted.rows is not None:
        out += seen[..., old + new :] * value[:, :, None]
    return out.transpose(0, 1).reshape(call.query.shape)
