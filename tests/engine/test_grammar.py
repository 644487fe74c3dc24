"""What a grammar says of a draft, with vLLM's own automata: the same as accepting it would, and nothing in the log."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import xgrammar
from vllm.v1.structured_output import backend_xgrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from thriftree.plugins.engine.grammar import TreeGrammar, path_tokens, prune
from thriftree.plugins.engine.tree_tokens import TreeTokens

pytestmark = pytest.mark.engine
WORDS = ["<end>", *"abcdef", "ab", "bc", "cab", "de", "fade"]
RULE = 'root ::= ("ab" | "cab" | "de")+ "f"'


def automaton() -> XgrammarGrammar:
    tokens = xgrammar.TokenizerInfo(WORDS, stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(tokens).compile_grammar(RULE)
    return XgrammarGrammar(len(WORDS), xgrammar.GrammarMatcher(compiled), compiled)


def tree_grammar(made: Any) -> TreeGrammar:
    request: Any = SimpleNamespace(request_id="r", structured_output_request=SimpleNamespace(grammar=made))
    return TreeGrammar(SimpleNamespace(), request)


def accepted(made: XgrammarGrammar, steps: list[int]) -> bool:
    """The long way: a token at a time, and back."""
    moved = 0
    for step in steps:
        if step < 0 or made.is_terminated() or not made.accept_tokens("r", [step]):
            break
        moved += 1
    if moved:
        made.rollback(moved)
    return moved == len(steps)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage())
    backend_xgrammar.logger.addHandler(handler)
    yield found
    backend_xgrammar.logger.removeHandler(handler)


def random_tree(chance: random.Random) -> TreeTokens:
    drafts = TreeTokens()
    for node in range(24):
        drafts.add(chance.randrange(-1 if node % 5 == 0 else 0, len(WORDS)), chance.randrange(-1, node), 0.5)
    return drafts


@pytest.mark.parametrize("begun", ["", "ab", "c", "abde", "abf"])
def test_a_pruned_tree_is_what_the_grammar_accepts(begun: str, complaints: list[str]) -> None:
    made, other = automaton(), automaton()
    for letter in begun:
        assert made.accept_tokens("r", [WORDS.index(letter)]) and other.accept_tokens("r", [WORDS.index(letter)])
    grammar, chance, kept = tree_grammar(made), random.Random(begun), 0
    for _ in range(200):
        drafts = random_tree(chance)
        complaints.clear()
        left = prune(drafts, grammar)
        assert complaints == []
        assert made.num_processed_tokens == len(begun) and not made.is_terminated()
        paths = [path_tokens(drafts.parents, drafts, node) for node in range(len(drafts))]
        wanted = [path for path in paths if accepted(other, path)]
        assert [path_tokens(left.parents, left, node) for node in range(len(left))] == wanted
        kept += len(left)
    assert kept > 10 and complaints, "the long way complains, or nothing was forbidden"
