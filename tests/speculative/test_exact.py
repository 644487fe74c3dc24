"""Draft and verify, every random choice enumerated: the answer's law is the target's own, to the last
fraction."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from default_methods import each_method
from toy import (
    Choose,
    Law,
    RandomTarget,
    Verify,
    distance,
    exact_law,
    path_to,
    rolling,
    sample_then_walk,
    serve,
)

from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.registry import build
from thriftree.plugins.speculative.tree import ROOT, DraftTree

LENGTH = 4
PROMPT = [0, 1, 2, 0, 1, 0, 2, 1, 0, 1]


def plain_law(target: RandomTarget) -> Law:
    def program(choose: Choose) -> tuple[int, ...]:
        text = list(PROMPT)
        for _ in range(LENGTH):
            text.append(choose(target.law(text)))
        return tuple(text[len(PROMPT) :])

    return exact_law(program)


def drafted_law(target: RandomTarget, method: str, options: dict[str, Any], verify: Verify) -> tuple[Law, int]:
    """The law with drafts, and the nodes drafted in all branches."""
    drafted = 0

    def program(choose: Choose) -> tuple[int, ...]:
        nonlocal drafted
        drafter: Drafter = build(method, Memory(), options)
        serve(drafter, target, [1, *PROMPT], 12, rolling(1), request="earlier")
        trees: list[DraftTree] = []
        answer = serve(drafter, target, PROMPT, LENGTH, choose, nodes=7, verify=verify, trees=trees)
        drafted += sum(map(len, trees))
        return tuple(answer[:LENGTH])

    return exact_law(program), drafted


@each_method
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_law_is_the_target_s(method: str, options: dict[str, Any], seed: int) -> None:
    target = RandomTarget(vocabulary=3, order=2, seed=seed)
    law, drafted = drafted_law(target, method, options, sample_then_walk)
    assert drafted > 0
    assert sum(law.values()) == 1
    assert law == plain_law(target)


def rowwise(tree: DraftTree, law_at: Callable[[int], Law], choose: Choose) -> list[int]:
    """Mutant: every root-to-leaf path samples its own rows, the longest match wins."""
    leaves = set(range(len(tree))) - set(tree.parents)
    best: list[int] = []
    for leaf in sorted(leaves):
        path = path_to(tree, leaf + 1)
        rows = [0]
        node = leaf
        while node != ROOT:
            rows.insert(1, node + 1)
            node = tree.parents[node]
        tokens: list[int] = []
        for row, token in zip(rows, [*path, None], strict=True):
            tokens.append(choose(law_at(row)))
            if tokens[-1] != token:
                break
        if len(tokens) > len(best):
            best = tokens
    return best or [choose(law_at(0))]


def draw_per_sibling(tree: DraftTree, law_at: Callable[[int], Law], choose: Choose) -> list[int]:
    """Mutant: a fresh sample for each sibling, as if siblings were independent tries (duplicates gain
    chances)."""
    tokens: list[int] = []
    parent, row = ROOT, 0
    while True:
        for node in (i for i, p in enumerate(tree.parents) if p == parent):
            if choose(law_at(row)) == tree.tokens[node]:
                tokens.append(tree.tokens[node])
                parent, row = node, node + 1
                break
        else:
            return [*tokens, choose(law_at(row))]


def softmax_as_q(tree: DraftTree, law_at: Callable[[int], Law], choose: Choose) -> list[int]:
    """Mutant: accept with min(1, p / q) and q the values, although the draft was not drawn from them."""
    tokens: list[int] = []
    parent, row = ROOT, 0
    while True:
        law = dict(law_at(row))
        children = [i for i, p in enumerate(tree.parents) if p == parent]
        total = sum(Fraction(tree.values[c]).limit_denominator(1000) for c in children) or Fraction(1)
        for node in children:
            token = tree.tokens[node]
            q = Fraction(tree.values[node]).limit_denominator(1000) / total
            accept = min(Fraction(1), law[token] / q) if q else Fraction(1)
            if choose({True: accept, False: 1 - accept}):
                tokens.append(token)
                parent, row = node, node + 1
                break
            law[token] = max(law[token] - q, Fraction(0))
            rest = sum(law.values())
            law = {t: p / rest for t, p in law.items()} if rest else dict(law_at(row))
        else:
            return [*tokens, choose(law)]


@pytest.mark.parametrize("mutant", [rowwise, draw_per_sibling, softmax_as_q])
def test_a_wrong_verification_is_caught(mutant: Verify) -> None:
    target = RandomTarget(vocabulary=3, order=1, seed=1)
    law, _ = drafted_law(target, "token_recycling", {"shape": "0 1 00"}, mutant)
    assert distance(law, plain_law(target)) > Fraction(1, 100)


def test_sibling_order_does_not_matter_for_one_hot_drafts() -> None:
    target = RandomTarget(vocabulary=3, order=1, seed=1)

    def reversed_siblings(tree: DraftTree, law_at: Callable[[int], Law], choose: Choose) -> list[int]:
        order = sorted(range(len(tree)), key=lambda i: (len(path_to(tree, i + 1)), -i))
        place = {node: at for at, node in enumerate(order)} | {ROOT: ROOT}
        mirrored = DraftTree([tree.tokens[n] for n in order], [place[tree.parents[n]] for n in order])
        return sample_then_walk(mirrored, lambda row: law_at(order[row - 1] + 1 if row else 0), choose)

    law, _ = drafted_law(target, "auto", {}, reversed_siblings)
    assert law == plain_law(target)
