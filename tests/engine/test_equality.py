"""Greedy and seeded answers of the real engine, with trees and without, token by token in float32."""

from __future__ import annotations

from typing import Any

import pytest

from thriftree.kernels.linear import available

from .conftest import Answers
from .engines import assert_same
from .scenarios import SCENARIOS

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("name", [*SCENARIOS, "second_turn"])
def test_same_answer(pair: tuple[Answers, Answers, dict[str, Any]], name: str) -> None:
    expected, got, _ = pair
    assert_same(expected[name], got[name])


def test_trees_were_at_work(pair: tuple[Answers, Answers, dict[str, Any]]) -> None:
    """Equality would mean nothing without accepted drafts, also on branches that are not the first."""
    _, _, counts = pair
    assert counts["accepted"] > 500
    assert counts["branches"] > 15
    assert counts["own linear layers"] > 100 or not available()
    assert counts["live"] <= 1, "finished requests leave the drafters"
