"""Draft tokens that keep their tree on the way worker -> scheduler -> worker.

The scheduler treats a request's drafts as a list of ints: it slices off a tail, pads with -1, pickles it. `TreeTokens`
is that list and carries each token's parent and value along. Parents come first, so every prefix it cuts is a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

from thriftree.plugins.speculative.tree import ROOT, DraftTree


class TreeTokens(list[int]):
    """Token ids of a draft tree; ``parents`` and ``values`` as in `DraftTree`."""

    __slots__ = ("parents", "values")

    def __init__(self, tokens: Iterable[int] = (), parents: Iterable[int] = (), values: Iterable[float] = ()) -> None:
        super().__init__(tokens)
        self.parents = list(parents)
        self.values = list(values)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> TreeTokens: ...
    def __getitem__(self, index: Any, /) -> Any:
        if isinstance(index, slice):
            return TreeTokens(list.__getitem__(self, index), self.parents[index], self.values[index])
        return list.__getitem__(self, index)

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        list.__delitem__(self, index)
        del self.parents[index]
        del self.values[index]

    def add(self, token: int, parent: int, value: float) -> None:
        """One more node."""
        self.append(token)
        self.parents.append(parent)
        self.values.append(value)

    def extend(self, padding: Iterable[int], /) -> None:
        """The scheduler pads with -1: nodes under the root that no sample can match."""
        for token in padding:
            self.add(token, ROOT, 0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return TreeTokens, (list(self), self.parents, self.values)


def as_tree(drafts: Sequence[int]) -> DraftTree:
    """The tree behind scheduled drafts. A list without parents is the scheduler's own padding: it accepts nothing."""
    if isinstance(drafts, TreeTokens):
        return DraftTree(list(drafts), drafts.parents, drafts.values)
    return DraftTree(list(drafts), [ROOT] * len(drafts), [0.0] * len(drafts))


def as_tokens(tree: DraftTree) -> TreeTokens:
    """The drafts that the scheduler is handed for `tree`."""
    return TreeTokens(tree.tokens, tree.parents, tree.values)
