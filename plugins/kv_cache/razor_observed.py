"""`razor_observed`: retrieval heads keep everything, the others what was attended to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thriftree.plugins.kv_cache.observed import Observed


@dataclass(frozen=True)
class RazorObserved(Observed):
    """Keep everything in the retrieval heads, in all others the rows with the largest mean attention.

    Retrieval heads are those of the model's head file (`thriftree probe heads`); they keep the facts. The other
    heads keep what the continuation's wording needs, by the score of `observed`.

    Paper: RazorAttention, arXiv 2407.15891, whose other heads keep sinks and newest rows only. The combination is
    ours: in our comparison it was the best or close to the best at a quarter of the cache and below.
    """

    paper: ClassVar[str] = "2407.15891"
    retrieval: ClassVar[bool] = True
