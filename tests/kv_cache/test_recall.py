"""What the methods are for, on the model with weights set by hand (recall.py): facts asked for afterwards."""

from __future__ import annotations

from functools import cache

import pytest
from recall import RETRIEVAL, Case, recalled

from thriftree.plugins.kv_cache import registry

CASES = [Case.drawn(seed) for seed in range(40)]
SHARES = (0.5, 0.3, 0.2)


@cache
def found(method: str, share: float, whole: tuple[int, ...] = ()) -> float:
    configured = registry.configure(method)
    return sum(recalled(case, configured, share, whole) for case in CASES) / len(CASES)


def test_the_whole_cache_finds_everything() -> None:
    assert found("streaming_llm", 1.0) == 1.0


@pytest.mark.parametrize("share", SHARES)
def test_the_retrieval_head_keeps_the_facts_and_no_other_does(share: float) -> None:
    assert found("razor_attention", share, (RETRIEVAL,)) == 1.0
    wrong = found("razor_attention", share, (RETRIEVAL + 2,))
    # Equal bytes: what the wrong head holds is missing in the right one, so it is below the newest rows everywhere.
    assert wrong <= found("streaming_llm", share) + 0.05
    assert wrong <= 0.45


@pytest.mark.parametrize("share", SHARES)
def test_attention_so_far_says_nothing_about_a_question_to_come(share: float) -> None:
    for method in ("h2o", "snapkv"):
        assert found(method, share) <= found("random", share)


def test_facts_go_as_rows_do() -> None:
    assert found("random", 0.5) > found("random", 0.3) > found("random", 0.2) > 0
    assert found("random", 0.2) <= 0.3


def test_observed_attention_costs_the_facts_and_the_retrieval_head_brings_them_back() -> None:
    assert found("observed", 0.2) <= found("random", 0.2)
    assert found("razor_observed", 0.2, (RETRIEVAL,)) == 1.0
