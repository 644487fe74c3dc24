"""One engine at a time: plain vLLM answers every scenario first, then ours does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .engines import Answer, Engine, engine
from .scenarios import SCENARIOS, follow_up

Answers = dict[str, list[Answer | None]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands here needs vLLM: none of it runs in the first half of `make test`, all of it in the second."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)


def play(running: Engine) -> Answers:
    tokenizer = running.llm.get_tokenizer()
    answers: Answers = {}
    for name, make in SCENARIOS.items():
        answers[name] = running.run(make(tokenizer))
    first = SCENARIOS["greedy"](tokenizer)
    answers["second_turn"] = running.run(follow_up(tokenizer, first, answers["greedy"]))
    return answers


@pytest.fixture(scope="session")
def default_model() -> str:
    from thriftree.zoo import smollm2

    return str(smollm2.ensure())


@pytest.fixture(scope="module")
def pair(default_model: str, request: pytest.FixtureRequest) -> Iterator[tuple[Answers, Answers, dict[str, Any]]]:
    """Answers of plain vLLM, answers of ours, and what ours counted."""
    with engine(default_model) as plain:
        expected = play(plain)
    with engine(default_model, {"max_nodes": 12, "adaptive": False}) as ours:
        runner = ours.runner
        counts = {"drafted": 0, "accepted": 0, "branches": 0}
        judge = runner.proposer.judge

        def counting(accepted: Any) -> None:
            for tree, path in zip(runner.proposer._trees, accepted, strict=True):
                counts["drafted"] += len(tree)
                counts["accepted"] += len(path)
                counts["branches"] += path != list(range(len(path)))
            judge(accepted)

        runner.proposer.judge = counting
        got = play(ours)
        ours.settle()
        counts["live"] = len(runner.proposer._live)
        counts["own linear layers"] = ours.own_linear_layers
    yield expected, got, counts
