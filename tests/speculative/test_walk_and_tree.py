"""Walks over trees, and trees cut to a prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.speculative.tree import ROOT, DraftTree
from thriftree.plugins.speculative.walk import Walk, depths, greedy_walk, verified_chain

#            5 -- 7 -- 9
#   root --<      `-- 8
#            6 -- 7
TREE = DraftTree([5, 6, 7, 7, 8, 9], [ROOT, ROOT, 0, 1, 0, 2], [0.6, 0.3, 0.2, 0.1, 0.09, 0.01])


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    nodes: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 12))):
        key = (draw(st.integers(ROOT, len(nodes) - 1)), draw(st.integers(0, 3)))
        if key not in nodes:
            nodes.append(key)
    return DraftTree([t for _, t in nodes], [p for p, _ in nodes], [1.0] * len(nodes))


def test_greedy_walk_follows_the_argmax_and_adds_the_bonus() -> None:
    assert greedy_walk(TREE, [5, 7, 0, 9, 0, 0, 3]) == ([0, 2, 5], 3)
    assert greedy_walk(TREE, [6, 7, 8, 9, 0, 0, 3]) == ([1], 8)
    assert greedy_walk(TREE, [4, 7, 0, 9, 0, 0, 3]) == ([], 4)
    assert greedy_walk(DraftTree(), [4]) == ([], 4)


def test_a_stepwise_walk_asks_for_one_row_per_level() -> None:
    walk = Walk(TREE)
    rows = [walk.row]
    for token in (6, 7, 1):
        if not walk.advance(token):
            break
        rows.append(walk.row)
    assert rows == [0, 2, 4]
    assert walk.accepted == [1, 3]


def test_verified_chain_recovers_the_path_from_what_was_emitted() -> None:
    assert verified_chain(TREE, [5, 7, 9, 3]) == [0, 2, 5]
    assert verified_chain(TREE, [5, 7]) == [0, 2]
    assert verified_chain(TREE, [7, 5]) == []


def test_depths() -> None:
    assert depths(TREE) == [1, 1, 2, 2, 2, 3]


@given(trees(), st.lists(st.integers(0, 3), min_size=14, max_size=14))
def test_the_greedy_walk_finds_the_longest_matching_path(tree: DraftTree, argmax: list[int]) -> None:
    accepted, bonus = greedy_walk(tree, argmax)
    matching = {ROOT}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent in matching and token == argmax[parent + 1]:
            matching.add(node)
    assert set(accepted) == matching - {ROOT}
    assert bonus == argmax[accepted[-1] + 1 if accepted else 0]


@given(trees(), st.integers(0, 14))
def test_a_prefix_is_a_tree_again(tree: DraftTree, cut: int) -> None:
    part = tree[:cut]
    assert len(part) == min(cut, len(tree))
    assert all(parent < i for i, parent in enumerate(part.parents))


def test_only_prefixes_are_trees() -> None:
    with pytest.raises(ValueError, match="prefix"):
        TREE[1:]
    with pytest.raises(ValueError, match="prefix"):
        TREE[::2]
