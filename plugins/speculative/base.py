"""The one interface of all drafters. A drafter is pure: token ids in, a `DraftTree` out; it never sees the
engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.speculative.tree import DraftTree


class Drafter(ABC):
    """Proposes the tokens that the model will probably say next. The draft law is one-hot: no randomness.

    The engine calls, per request: `start` once, then after every step `observe` (top-k rows of what was
    verified) and `emit` (what was committed), then `propose`; `finish` once, also for an aborted request. All
    state that outlives a request belongs to its tenant. The same calls in the same order give the same trees
    (tensor-parallel ranks rely on it). Every method is on the hot path: microseconds, no tensors.
    """

    #: Whether `observe` wants top-k rows; the engine skips the top-k when no active drafter does.
    wants_rows: ClassVar[bool] = False

    @abstractmethod
    def start(self, request: str, tenant: str, prompt: Sequence[int]) -> None:
        """A request enters with its prompt's token ids."""

    @abstractmethod
    def emit(self, request: str, tokens: Sequence[int]) -> None:
        """Tokens that the target model committed in this step (one or more), in order."""

    @abstractmethod
    def propose(self, request: str, max_nodes: int, max_depth: int) -> DraftTree:
        """The best tree under the last committed token, at most `max_nodes` nodes and `max_depth` levels."""

    @abstractmethod
    def finish(self, request: str) -> None:
        """The request is over (also: aborted). Unknown requests are ignored."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Memory held, in bytes (an estimate that does not walk the state)."""

    def observe(  # noqa: B027
        self, request: str, pairs: Sequence[tuple[int, int]], rows: NDArray[np.int32]
    ) -> None:
        """What the target thinks: after token ``pairs[r][1]`` (itself after ``pairs[r][0]``), most likely
        first,
        ``rows[r]`` come next. Called before `emit` of the same step, for all verified rows, rejected ones
        too.

        Args:
            pairs: ``R`` pairs (token before, token); -1 where there is no token before.
            rows: ``[R, k]`` token ids by falling logit.
        """

    def unseen(self, request: str, pairs: Sequence[tuple[int, int]]) -> list[int]:
        """Indices of `pairs` whose row would still teach something (prompt seeding computes only those)."""
        return []
