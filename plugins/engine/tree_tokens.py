"""Draft tokens that keep their tree on the way worker -> scheduler -> worker.

The scheduler treats a request's drafts as a list of ints: it slices off a tail, pads with -1, pickles it. `TreeTokens`
is that list and carries each token's parent along. Parents come first, so every prefix the scheduler cuts is a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

from thriftree.plugins.speculative.tree import ROOT, DraftTree


class TreeTokens(list[int]):
    """Token ids of a draft tree, with ``parents[i]`` (index of the parent node, or -1 for the root's children)."""

    __slots__ = ("parents",)

    def __init__(self, tokens: Iterable[int] = (), parents: Iterable[int] = ()) -> None:
        super().__init__(tokens)
        self.parents = list(parents)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> TreeTokens: ...
    def __getitem__(self, index: Any, /) -> Any:
        if isinstance(index, slice):
            return TreeTokens(list.__getitem__(self, index), self.parents[index])
        return list.__getitem__(self, index)

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        list.__delitem__(self, index)
        del self.parents[index]

    def extend(self, padding: Iterable[int], /) -> None:
        """The scheduler pads with -1: nodes under the root that no sample can match."""
        super().extend(padding)
        self.parents.extend([ROOT] * (len(self) - len(self.parents)))

    def __reduce__(self) -> tuple[Any, ...]:
        return TreeTokens, (list(self), self.parents)


def as_tree(drafts: Sequence[int]) -> DraftTree:
    """The tree behind scheduled drafts. A list without parents is the scheduler's own padding: it accepts nothing."""
    parents = drafts.parents if isinstance(drafts, TreeTokens) else [ROOT] * len(drafts)
    return DraftTree(list(drafts), parents)
