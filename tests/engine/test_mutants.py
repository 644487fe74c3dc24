"""The tests above can fail: three broken engines must give other answers than plain vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thriftree.plugins.engine import runner_v1
from thriftree.plugins.engine import step as step_module
from thriftree.zoo import tiny

from .engines import Answer, Engine, engine
from .test_shapes import random_asks

pytestmark = pytest.mark.engine


def mask_off(ours: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def everyone(tree: Any, words: int) -> Any:
        rows = len(tree) + 1
        return np.full((rows, words), (1 << rows) - 1, dtype=np.int64)

    monkeypatch.setattr(step_module, "ancestor_bits", everyone)


def positions_not_by_depth(ours: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = runner_v1.plan_step

    def flat(*args: Any) -> Any:
        made = plan(*args)
        steps = np.concatenate(
            [first + 1 + np.arange(len(t)) for first, t in zip(made.root_position, made.trees, strict=True)]
        )
        made.node_positions[:] = steps
        return made

    monkeypatch.setattr(runner_v1, "plan_step", flat)


def commit_skipped(ours: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours.runner, "_commit", lambda *args: None)


Answers = list[list[Answer | None]]


@pytest.fixture(scope="module")
def expected() -> Answers:
    with engine(str(tiny.ensure("llama-gqa"))) as plain:
        return [plain.run(random_asks(3, seed)) for seed in range(4)]


@pytest.mark.parametrize("mutant", [None, mask_off, positions_not_by_depth, commit_skipped])
def test_broken_engines_differ(
    expected: Answers, monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., None] | None
) -> None:
    with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 16, "adaptive": False}) as ours:
        if mutant is not None:
            mutant(ours, monkeypatch)
        got = [ours.run(random_asks(3, seed)) for seed in range(4)]
    assert (got == expected) == (mutant is None)
