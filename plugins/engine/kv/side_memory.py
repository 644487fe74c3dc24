"""What compression holds beside the cache, in bytes: worked out before the cache is made, so that both fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_POSITION = _SUM = 4  # bytes: int32, float32
_HEAD_BLOCK = 8  # int64: a head block dealt out to a head (`ragged.RaggedRows`)
_PASSING = 2  # query rows of a running request that pass through a step, beside those that are kept


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer on one rank."""

    heads: int  # KV heads
    query_heads: int
    dim: int
    item: int  # bytes of a number
    block: int  # tokens of a block
    page: int  # bytes of a block in the cache


@dataclass(frozen=True, slots=True)
class SideMemory:
    """Of one worker, at full use: every cached token belongs to a compressed request.

    Small Python objects and what exists only while an event is worked out (a layer's rows of one request in float32)
    are not in it.
    """

    cached: float  # bytes of a token in the cache itself
    token: float  # beside it: where its row stood in the text in each layer and head, and its sum
    request: int  # the newest queries of a running request

    @classmethod
    def of(cls, layers: Iterable[Layer], window: int, sums: bool) -> SideMemory:
        """`window`: queries that a request keeps; `sums`: whether rows carry a sum of attention."""
        mine = list(layers)
        per_row = _POSITION + (_SUM if sums else 0)
        return cls(
            cached=sum(layer.page / layer.block for layer in mine),
            token=sum(layer.heads * (per_row + _HEAD_BLOCK / layer.block) for layer in mine),
            request=sum(layer.query_heads * layer.dim * layer.item for layer in mine) * (window + _PASSING),
        )

    def held(self, tokens: int, requests: int) -> int:
        """Beside the cache, with so many tokens in it, of so many requests."""
        return round(self.token * tokens) + self.request * requests

    def room(self, total: int, requests: int, least: int) -> int:
        """What of `total` bytes is left for the cache.

        `requests`: that run at once, as far as there is room for the `least` tokens of each.
        """
        running = min(requests, int(total / (self.cached * least + self.request)))
        return int((total - self.request * running) * self.cached / (self.cached + self.token))
