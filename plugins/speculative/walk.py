"""Verification of one-hot drafts: the target speaks once per visited node, the walk follows the child that
says so.

Exact for every tree that was built without looking at the target's randomness (whatever the temperature),
because the token that is emitted at a node is always the target's own sample there, drafted or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from thriftree.plugins.speculative.tree import ROOT, DraftTree


class Walk:
    """One request's way down its tree, driven level by level.

    Row 0 is the root's row of logits, row ``i + 1`` that of node ``i``. Sample at `row`, hand the token to
    `advance`; while it returns True there is a next row to sample at. Every token handed in is emitted.
    """

    __slots__ = ("_child", "accepted", "row")

    def __init__(self, tree: DraftTree) -> None:
        self._child = {key: i for i, key in enumerate(zip(tree.parents, tree.tokens, strict=True))}
        self.accepted: list[int] = []
        self.row = 0

    def advance(self, token: int) -> bool:
        """Descend to the child that carries `token`; False where no child does (the token is the last
        one)."""
        node = self._child.get((self.row - 1, token))
        if node is None:
            return False
        self.accepted.append(node)
        self.row = node + 1
        return True


def greedy_walk(tree: DraftTree, argmax: Sequence[int]) -> tuple[list[int], int]:
    """The accepted nodes and the bonus token, from the argmax of every row (row 0 = root, row ``i + 1`` =
    node ``i``)."""
    walk = Walk(tree)
    while walk.advance(argmax[walk.row]):
        pass
    return walk.accepted, argmax[walk.row]


def verified_chain(tree: DraftTree, tokens: Sequence[int]) -> list[int]:
    """The nodes that emitted `tokens` pass through (the accepted path, recovered from what was committed)."""
    walk = Walk(tree)
    for token in tokens:
        if not walk.advance(token):
            break
    return walk.accepted


def depths(tree: DraftTree) -> list[int]:
    """Level of every node; children of the root are on level 1."""
    out: list[int] = []
    for parent in tree.parents:
        out.append(1 if parent == ROOT else out[parent] + 1)
    return out
