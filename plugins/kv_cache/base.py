"""The interface of every KV-cache compression method: which rows of a full cache are worth their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class Method:
    """A method is its configuration: a frozen dataclass, one file. `score` is all that most of them have.

    The caller keeps the sinks and the recent rows whatever their score, and of the others the `Rows.keep` best of each
    head; the budget is its business, too. A method holds no state: what it needs from earlier steps is in `Rows`.
    """

    paper: ClassVar[str] = ""
    #: Newest queries that `score` looks at (0: none).
    window: ClassVar[int] = 0
    #: `score` needs `Rows.sums`: every query row is weighed against the cached keys, prompt and answer.
    observes: ClassVar[bool] = False
    #: `score` needs `Rows.rope`.
    needs_rope: ClassVar[bool] = False
    #: The rule is about the whole prompt: it compresses once the prompt is complete, unless the request says otherwise.
    defer: ClassVar[bool] = True
    #: Heads of a head file keep everything; only the others are scored.
    retrieval: ClassVar[bool] = False

    #: It drops nothing and chooses what the next steps read (`reading.ReadMethod`).
    reads: ClassVar[bool] = False

    def score(self, rows: Rows) -> Tensor:
        """``[H, M]``; the highest stay. Ties are broken by age, the newer row stays."""
        raise NotImplementedError

    def weigh(self, logits: Tensor, rows: Rows, at: Tensor) -> Tensor:
        """What a query row adds to the `sums` of each key; the default is its attention probability.

        Args:
            logits: ``[H, G, T, M]`` float32, scaled; -inf where the key is younger than the query.
            at: ``[T]`` positions of the queries.

        Returns:
            ``[H, G, T, M]``, 0 where the key is younger.
        """
        return torch.softmax(logits, dim=-1)

    def check(self, layers: int) -> None:
        """Called with the model's layers before a request is taken.

        Raises:
            ValueError: these parameters do not fit; the message starts with the parameter's name.
        """

    def share(self, tier: int, tiers: int) -> float:
        """The budget of a tier of layers as a multiple of the mean one (tier 0: the layers nearest the input)."""
        return 1.0
