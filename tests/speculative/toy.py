"""Small target models, an engine loop around a drafter, and the exact law of a random program."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.tree import ROOT, DraftTree
from thriftree.plugins.speculative.walk import Walk

Law = dict[Any, Fraction]
Choose = Callable[[Law], Any]


class _Ask(Exception):
    def __init__(self, law: Law) -> None:
        self.law = law


def exact_law(program: Callable[[Choose], Any]) -> Law:
    """The law of what `program` returns, if every random choice it makes goes through the `choose` it is
    given."""
    result: Law = {}
    open_scripts: list[tuple[tuple[Any, ...], Fraction]] = [((), Fraction(1))]
    while open_scripts:
        script, probability = open_scripts.pop()
        rest = iter(script)

        def choose(law: Law, rest: Iterator[Any] = rest) -> Any:
            for outcome in rest:
                return outcome
            raise _Ask(law)

        try:
            outcome = program(choose)
        except _Ask as ask:
            open_scripts += [((*script, o), probability * p) for o, p in ask.law.items() if p]
        else:
            result[outcome] = result.get(outcome, Fraction(0)) + probability
    return result


def distance(a: Law, b: Law) -> Fraction:
    """Total variation."""
    return sum((abs(a.get(k, Fraction(0)) - b.get(k, Fraction(0))) for k in {*a, *b}), Fraction(0)) / 2


class RandomTarget:
    """Rational next-token laws that depend on the last `order` tokens."""

    def __init__(self, vocabulary: int, order: int, seed: int) -> None:
        self.vocabulary = vocabulary
        self.order = order
        self._seed = seed
        self._laws: dict[tuple[int, ...], Law] = {}

    def law(self, context: Sequence[int]) -> Law:
        key = tuple(context[-self.order :])
        if key not in self._laws:
            rng = random.Random(f"{self._seed}{key}")
            weights = [rng.randint(1, 9) for _ in range(self.vocabulary)]
            self._laws[key] = {t: Fraction(w, sum(weights)) for t, w in enumerate(weights)}
        return self._laws[key]

    def row(self, context: Sequence[int]) -> list[int]:
        """All tokens, most likely first."""
        law = self.law(context)
        return sorted(law, key=lambda t: (-law[t], t))


Verify = Callable[[DraftTree, Callable[[int], Law], Choose], list[int]]


def sample_then_walk(tree: DraftTree, law_at: Callable[[int], Law], choose: Choose) -> list[int]:
    """The product's verification: one sample per visited row, through `Walk`."""
    walk = Walk(tree)
    tokens = [choose(law_at(walk.row))]
    while walk.advance(tokens[-1]):
        tokens.append(choose(law_at(walk.row)))
    return tokens


def path_to(tree: DraftTree, row: int) -> list[int]:
    """Tokens from the root down to a row's node (row 0: none)."""
    path: list[int] = []
    node = row - 1
    while node != ROOT:
        path.append(tree.tokens[node])
        node = tree.parents[node]
    return path[::-1]


def serve(
    drafter: Drafter,
    target: RandomTarget,
    prompt: list[int],
    length: int,
    choose: Choose,
    *,
    request: str = "r",
    tenant: str = "t",
    nodes: int = 6,
    verify: Verify = sample_then_walk,
    trees: list[DraftTree] | None = None,
) -> list[int]:
    """Generate `length` tokens as the engine does: observe every verified row, emit, propose."""
    drafter.start(request, tenant, prompt)
    text = list(prompt)
    tree = DraftTree()
    while len(text) < len(prompt) + length:
        contexts = [text + path_to(tree, row) for row in range(len(tree) + 1)]
        tokens = verify(tree, lambda row, c=contexts: target.law(c[row]), choose)  # type: ignore[misc]
        pairs = [(c[-2] if len(c) > 1 else ROOT, c[-1]) for c in contexts]
        drafter.observe(request, pairs, np.array([target.row(c) for c in contexts], dtype=np.int32))
        drafter.emit(request, tokens)
        text += tokens
        room = len(prompt) + length - len(text) - 1
        tree = drafter.propose(request, nodes, room) if room > 0 else DraftTree()
        if trees is not None:
            trees.append(tree)
    drafter.finish(request)
    return text[len(prompt) :]


def greedy(law: Law) -> Any:
    return min(law, key=lambda t: (-law[t], t))


def rolling(seed: int) -> Choose:
    """A seeded sampler, for runs that are not enumerated."""
    rng = random.Random(seed)

    def choose(law: Law) -> Any:
        return rng.choices(list(law), [float(p) for p in law.values()])[0]

    return choose
