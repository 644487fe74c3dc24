"""`lacache`: every token stays in some layers, a ladder over the layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, log
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class LaCache(Method):
    """Keep other tokens in each layer, in the pattern of a ladder: no token is dropped in all layers at first.

    Of every ``B`` tokens a layer keeps ``A`` neighbours, shifted by one from layer to layer. A pass goes over the
    cache from the oldest row on and stops as soon as there is room. A pass that has come to the end is followed by
    another one, over what the earlier ones left and what has come since: old text is thinned several times, new
    text once or not yet. It looks at positions only.

    Paper: LaCache, arXiv 2507.14204. Its cursor (where the pass is) is a state; here the pass in which a token goes
    is worked out from its position, the budget and the prompt's length, so that it does not matter when the cache
    is compressed, and a pass may stop inside a ladder. Later passes count places from position 0 and start anew
    instead of stretching the ladder. Tokens keep their positions. The rows that no pass touches are the request's
    `recent`.
    """

    paper: ClassVar[str] = "2507.14204"
    defer: ClassVar[bool] = False
    span: int = field(
        default=0, metadata={"minimum": 0, "maximum": 1024, "description": "layers that a token stays in (0: half)"}
    )
    overlap: int = field(
        default=0,
        metadata={"minimum": 0, "maximum": 1023, "description": "layers that two neighbouring rungs have in common"},
    )

    def check(self, layers: int) -> None:
        self.ladder(layers)

    def ladder(self, layers: int) -> tuple[int, int]:
        """``(B, A)``: of every `B` tokens each layer keeps `A`.

        Raises:
            ValueError: it would keep everything, or the overlap is not below the span.
        """
        span = self.span or max(layers // 2, 1)
        step = span - self.overlap
        if step <= 0:
            raise ValueError(f"overlap: must be below the span of {span} layers, got {self.overlap}")
        period = 1 + ceil((layers - span) / step)
        kept = min(ceil(span / step), period)
        if kept >= period:
            raise ValueError(
                f"span: {span} layers with overlap {self.overlap} drop nothing in a model of {layers} layers"
            )
        return period, kept

    def score(self, rows: Rows) -> Tensor:
        """The number of the pass in which a token goes; within a pass, the older one goes first, as in every tie."""
        period, kept = self.ladder(rows.layers)
        phase = rows.layer % (period - kept + 1)
        survived = passes_survived(period, kept, phase, 1 << rows.length.bit_length())
        return first_pass(rows, kept / period) + survived.to(rows.pos.device)[rows.pos]


def first_pass(rows: Rows, share: float) -> Tensor:
    """The first pass that reaches each token, if a pass leaves `share` of the rows it goes over.

    The prompt is there at once: the first passes go over all of it. Then the cache is full, a pass goes on as rows come
    in, and ends where it meets the newest one; the next one goes over `keep` rows and what comes in meanwhile.
    """
    keep, passes, left = max(rows.keep, 1), 0, float(rows.prompt)
    while left * share >= keep:  # passes over the prompt alone
        passes, left = passes + 1, left * share
    end = rows.prompt + keep / share - left
    further = (rows.pos - end).div(keep * (1 / share - 1), rounding_mode="floor") + 1
    return torch.where(rows.pos < rows.prompt, 1.0, passes + 1 + further.clamp_min(0))


@lru_cache(maxsize=256)
def passes_survived(period: int, kept: int, phase: int, size: int) -> Tensor:
    """``[size]`` how many passes each position outlives: in each, places ``phase .. phase + kept`` of every `period`
    stay, and the rest close up."""
    place = torch.arange(size)
    alive, survived = torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.int16)
    for _ in range(ceil(log(size) / log(period / kept)) + 1):
        rung = place % period - phase
        alive &= (rung >= 0) & (rung < kept)
        survived += alive
        place = place.div(period, rounding_mode="floor") * kept + rung
    return survived
