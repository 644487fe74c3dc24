"""The draft tree: what every drafter proposes and every verifier walks. Pure data, no tensors, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ROOT = -1


@dataclass(frozen=True, slots=True)
class DraftTree:
    """A token tree under the last committed token (the root, not a node).

    ``tokens[i]`` hangs under ``tokens[parents[i]]``, or under the root where ``parents[i] == ROOT``. Parents
    come first (``parents[i] < i``), so any prefix of the node list is a tree again; siblings are distinct.
    ``values[i]`` is the estimated probability that the whole path down to node ``i`` is accepted; nodes are
    ordered by falling value, so the first ``m`` nodes are the best tree of ``m`` nodes.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()
    values: Sequence[float] = field(default=())

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, cut: slice) -> DraftTree:
        """A prefix of the nodes, which is a tree again (``tree[:m]``)."""
        if cut.start not in (None, 0) or cut.step not in (None, 1):
            raise ValueError("only a prefix of a draft tree is a tree")
        return DraftTree(self.tokens[cut], self.parents[cut], self.values[cut])
