"""Suffix matches against a slow search, the library of earlier answers, and the trie with its counts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.registry import build
from thriftree.plugins.speculative.text import Library, Text
from thriftree.plugins.speculative.trie import Cursor, Node, Trie

tokens = st.lists(st.integers(0, 3), max_size=40)


def slow_matches(text: list[int], context: list[int], longest: int) -> tuple[int, list[int]]:
    """Length of the longest match of the context's ending that something follows, and where it continues."""
    for length in range(min(longest, len(context)), 0, -1):
        ending = context[len(context) - length :]
        places = [at + length for at in range(len(text) - length) if text[at : at + length] == ending]
        if places:
            return length, places[::-1]
    return 0, []


@given(tokens, tokens, st.integers(2, 6))
def test_matches_are_the_longest(text: list[int], context: list[int], longest: int) -> None:
    index = Text()
    for token in text:
        index.extend([token])
    assert index.tokens == text
    assert index.matches(context, longest, 1000) == slow_matches(text, context, longest)
    assert index.own_matches(longest, 1000) == slow_matches(text, text, longest)


def test_only_the_most_recent_places_are_looked_at() -> None:
    index = Text()
    index.extend([1, 2, 9, 1, 2, 8, 1, 2, 7, 1, 2])
    assert index.own_matches(8, 2) == (2, [8, 5])


def test_no_match_crosses_from_one_answer_into_the_next() -> None:
    library = Library()
    library.add([1, 2])
    library.add([3, 4])
    assert library.matches([1, 2], 8, 8)[1] == []
    assert library.matches([2, 3], 8, 8)[:2] == (1, [4])


def test_the_library_keeps_the_younger_answers() -> None:
    library = Library(limit=100)
    for start in range(0, 400, 10):
        library.add(list(range(start, start + 10)))
        assert len(library) <= 100
    assert library.matches([398], 8, 8)[0] == 1
    assert library.matches([8], 8, 8)[0] == 0
    library.add(list(range(1000)))
    assert len(library) <= 100


def counts(node: Node) -> dict[int, object]:
    return {token: (child.count, counts(child)) for token, child in sorted((node.children or {}).items())}


@given(st.lists(tokens, max_size=4), st.integers(1, 5))
def test_the_trie_counts_every_stretch(texts: list[list[int]], depth: int) -> None:
    trie = Trie(depth=depth)
    for text in texts:
        cursor = Cursor()
        for token in text:
            trie.stream(cursor, [token])
    expected: dict[tuple[int, ...], int] = {}
    for text in texts:
        for start in range(len(text)):
            for end in range(start + 1, min(start + depth, len(text)) + 1):
                stretch = tuple(text[start:end])
                expected[stretch] = expected.get(stretch, 0) + 1
    assert trie.nodes == len(expected)
    for stretch, count in expected.items():
        node = trie.find(stretch)
        assert node is not None and node.count == count


def size(node: Node) -> int:
    return sum(1 + size(child) for child in (node.children or {}).values())


def test_a_squeeze_keeps_what_is_frequent() -> None:
    trie = Trie(depth=4, limit=500)
    rng = random.Random(0)
    running = Cursor()
    trie.stream(running, [1, 2])
    for _ in range(300):
        cursor = Cursor()
        trie.stream(cursor, [1, 2, 3, 4])
        trie.stream(cursor, [rng.randrange(5, 1000) for _ in range(3)])
        assert trie.nodes <= 500
    assert trie.find([1, 2, 3, 4]) is not None
    trie.stream(running, [77])  # a running text goes on after squeezes
    assert trie.nodes == size(trie.root)
    assert all(c.count >= sum(x.count for x in (c.children or {}).values()) for c in trie.root.children.values())  # type: ignore[union-attr]


def test_a_squeeze_halves_and_drops() -> None:
    trie = Trie(depth=1)
    trie.stream(Cursor(), [1] * 5 + [2] * 2)
    trie.squeeze()
    assert counts(trie.root) == {1: (2.5, {})}
    assert trie.nodes == 1
    trie.shrink(0.5)
    assert trie.nodes == 0


@pytest.mark.parametrize("emitted", [[], [3, 1, 4]])
def test_a_cancelled_request_leaves_its_answer_and_nothing_of_its_prompt(emitted: list[int]) -> None:
    memory = Memory()
    drafter = build("trie_lookahead", memory)
    drafter.start("first", "t", [5, 6])
    drafter.emit("first", [1, 2, 1, 2])
    trie = memory.enter("t").trie
    before = counts(trie.root)
    drafter.start("cancelled", "t", [7, 8, 9, 7, 8, 9])
    drafter.emit("cancelled", emitted)
    drafter.propose("cancelled", 8, 8)
    drafter.finish("cancelled")
    drafter.start("next", "t", [7, 8])
    assert drafter.propose("next", 8, 8).tokens == []
    if not emitted:
        assert counts(trie.root) == before
    else:
        assert trie.find(emitted) is not None


def test_the_own_prompt_comes_before_other_answers() -> None:
    drafter = build("trie_lookahead", Memory())
    drafter.start("other", "t", [0])
    drafter.emit("other", [1, 2, 3] * 5)
    drafter.finish("other")
    drafter.start("mine", "t", [1, 2, 4, 1, 2])
    tree = drafter.propose("mine", 2, 1)
    assert list(tree.tokens) == [4, 3]


def test_a_match_of_one_token_is_worth_less_than_one_of_two() -> None:
    drafter = build("trie_lookahead", Memory())
    drafter.start("two", "t", [3, 2, 5, 3, 2])
    drafter.start("one", "t", [7, 2, 5, 3, 2])
    two, one = drafter.propose("two", 1, 1), drafter.propose("one", 1, 1)
    assert list(two.tokens) == list(one.tokens) == [5]
    assert one.values[0] < 0.5 * two.values[0]


def test_branches_share_their_prefix() -> None:
    drafter = build("trie_lookahead", Memory())
    drafter.start("r", "t", [1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2])
    tree = drafter.propose("r", 8, 2)
    assert list(tree.tokens) == [3, 4, 5] or list(tree.tokens) == [3, 5, 4]
    assert tree.parents[1:] == [0, 0]


def test_a_suffix_tree_branches_where_the_text_did() -> None:
    drafter = build("suffix", Memory(), {"floor": 0.0})
    drafter.start("r", "t", [1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2])
    tree = drafter.propose("r", 8, 2)
    assert tree.tokens[0] == 3
    assert sorted(tree.tokens[1:3]) == [4, 5]
    assert tree.parents[1:3] == [0, 0]


def test_depth_follows_the_length_of_the_match() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    drafter = build("suffix", Memory(), {"floor": 0.0, "depth_factor": 0.5})
    drafter.start("r", "t", text)
    assert list(drafter.propose("r", 8, 8).tokens) == [5, 6]
    drafter.start("r", "t", text[:-2])
    assert list(drafter.propose("r", 8, 8).tokens) == [3]
