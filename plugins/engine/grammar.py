"""Structured output on trees: forbidden nodes are pruned before they cost a row, every node gets its own mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from thriftree.plugins.engine.tree_tokens import TreeTokens, as_tree
from thriftree.plugins.speculative.tree import ROOT

Mask = NDArray[np.int32]


class TreeGrammar:
    """A request's grammar automaton, moved along the paths of a tree and always put back."""

    def __init__(self, manager: StructuredOutputManager, request: Request) -> None:
        structured = request.structured_output_request
        assert structured is not None
        self.automaton: Any = structured.grammar
        self._request = request.request_id
        self._manager = manager

    @classmethod
    def of(cls, manager: StructuredOutputManager, request: Request) -> TreeGrammar | None:
        """The grammar that constrains the request's next token; None while it is still reasoning (no drafts then)."""
        structured = request.structured_output_request
        if structured is None or structured.grammar is None:
            return None
        if manager._get_constraint_bounds(request, ()).constraint_start != 0:
            return None
        return cls(manager, request)

    def descend(self, path: Sequence[int], token: int) -> bool:
        """Whether `token` may follow `path`; the automaton stays where it is.

        `accept_tokens` would say the same, but a token that it refuses is an error in the log: drafts are guesses.
        """
        steps = [*path, token]
        if min(steps) < 0 or self.automaton.is_terminated():
            return False
        return len(self.automaton.validate_tokens(steps)) == len(steps)

    def masks(self, drafts: Sequence[int], root: Mask) -> list[Mask]:
        """``[nodes + 1]`` masks: the root's, then what may follow each node (padding: the root's, never visited)."""
        tree = as_tree(drafts)
        out = [root]
        for node, token in enumerate(tree.tokens):
            path = path_tokens(tree.parents, tree.tokens, node)
            out.append(self._mask_after(path) if token >= 0 else root)
        return out

    def _mask_after(self, path: Sequence[int]) -> Mask:
        bitmask = self._manager._grammar_bitmask
        assert bitmask is not None
        moved = 0
        try:
            for token in path:
                if self.automaton.is_terminated() or not self.automaton.accept_tokens(self._request, [token]):
                    break
                moved += 1
            self._manager._fill_bitmasks(((self.automaton, 0, True),))
            filled: Mask = bitmask[0].numpy().copy()
            return filled
        finally:
            if moved:
                self.automaton.rollback(moved)

    @staticmethod
    def stack(masks: Sequence[Sequence[Mask]]) -> Mask:
        return np.stack([row for rows in masks for row in rows])


def path_tokens(parents: Sequence[int], tokens: Sequence[int], node: int) -> list[int]:
    """Tokens from the root's child down to `node`."""
    path: list[int] = []
    while node != ROOT:
        path.append(tokens[node])
        node = parents[node]
    return path[::-1]


def prune(drafts: TreeTokens, grammar: TreeGrammar) -> TreeTokens:
    """The subtree that the grammar allows, in the same order."""
    kept: dict[int, int] = {ROOT: ROOT}
    out = TreeTokens()
    nodes = zip(drafts, drafts.parents, drafts.values, strict=True)
    for node, (token, parent, value) in enumerate(nodes):
        if parent in kept and grammar.descend(path_tokens(drafts.parents, drafts, parent), token):
            kept[node] = len(out)
            out.add(token, kept[parent], value)
    return out
