"""Is the instrument right? Measured before anything else is, on the model in question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thriftree.benchmarks.kv.lab import Evicted, Lab
from thriftree.plugins.kv_cache.select import keep_mask

#: Differences of log-probabilities that rounding explains, in nats.
TOLERANCE = 2e-3
_NEW = 8


@dataclass(frozen=True)
class Checks:
    """Largest differences of log-probabilities, in nats."""

    forward: float  # our attention against transformers' own
    masked: float  # a masked cache against one that is really short
    full: float  # nothing dropped against a plain pass

    @property
    def right(self) -> bool:
        return max(self.forward, self.masked, self.full) < TOLERANCE

    def __str__(self) -> str:
        return (
            f"checked: our pass against transformers' {self.forward:.1e}, masked rows against a really shortened cache "
            f"{self.masked:.1e}, nothing dropped against a plain pass {self.full:.1e} (nats)"
        )


def check(lab: Lab, model: str, ids: list[int]) -> Checks:
    """On a text of token `ids`, of which the last eight are scored."""
    context, new = ids[:-_NEW], ids[-_NEW:]
    prefix, shape = lab.prefill(context), lab.shape
    everything = torch.ones(1, shape.layers, shape.kv_heads, len(context), dtype=torch.bool)
    half = _random(lab, len(context))
    ours = lab.log_probabilities(lab.read_on(prefix, new, Evicted(everything)))[0]
    short = lab.log_probabilities(lab.read_on(prefix, new, Evicted(half[None])))[0]
    whole, really = _transformers(model, ids, half)
    plain = lab.log_probabilities(lab.plain(ids)[-_NEW:])
    return Checks(_most(ours, whole), _most(short, really), _most(ours, plain))


def _most(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _random(lab: Lab, length: int) -> Tensor:
    """``[L, H, N]``: other rows in every layer and head, equally many."""
    draw = torch.Generator().manual_seed(0)
    pos = torch.arange(length).expand(lab.shape.kv_heads, -1)
    return torch.stack(
        [
            keep_mask(torch.rand(pos.shape, generator=draw), pos, length // 2, length, 4, 4)
            for _ in range(lab.shape.layers)
        ]
    )


def _transformers(model: str, ids: list[int], keep: Tensor) -> tuple[Tensor, Tensor]:
    """The model as its library runs it: on the whole text, and on its end after a cache that was cut."""
    from transformers import AutoModelForCausalLM, DynamicCache

    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    context = len(ids) - _NEW
    with torch.inference_mode():
        whole = made(input_ids=torch.tensor([ids])).logits[0, -_NEW:]
        cache = DynamicCache()
        made(input_ids=torch.tensor([ids[:context]]), past_key_values=cache)
        for layer, mask in zip(cache.layers, keep, strict=True):
            cut = [torch.stack([x[0, h, mask[h]] for h in range(len(mask))])[None] for x in (layer.keys, layer.values)]
            layer.keys, layer.values = cut
        at = torch.arange(context, len(ids))[None]
        short = made(input_ids=torch.tensor([ids[context:]]), past_key_values=cache, position_ids=at).logits[0]
    return whole.log_softmax(dim=-1), short.log_softmax(dim=-1)
