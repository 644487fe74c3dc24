from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.admission.cost import estimate, urgency

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n", "priority"]), JSON)


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        ({}, 100 + 256),
        ({"max_tokens": 10}, 110),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 120),
        ({"max_output_tokens": 30}, 130),
        ({"max_tokens": 10, "n": 3}, 130),
        ({"max_tokens": None, "n": None}, 356),
        ({"max_tokens": "10", "n": True}, 356),
        ({"max_tokens": -1, "n": 0}, 356),
        ({"max_tokens": 10**9, "n": 10**9}, 100 + 4096 * 128),
        (None, 356),
        ([1], 356),
    ],
)
def test_prompt_and_completion(body: Any, cost: int) -> None:
    assert estimate(400, 0, body) == cost
    assert estimate(9999, 100, body) == cost  # counted beats estimated


def test_no_completion() -> None:
    assert estimate(400, 0, {"max_tokens": 99}, completes=False) == 100
    assert estimate(0, 0, {}, completes=False) == 1


@given(st.integers(0, 10**9), FIELDS | JSON)
def test_any_body_has_a_cost_and_an_urgency(size: int, body: Any) -> None:
    assert 1 <= estimate(size, 0, body) <= size + 4096 * 128
    assert urgency(body, 0) >= 0


def test_urgency_is_capped_by_the_key() -> None:
    assert [urgency({"priority": value}, -5) for value in (-9, -5, 3, "1", None, True)] == [-5, -5, 3, 0, 0, 0]
    assert urgency({}, 2) == 2


def test_a_header_goes_before_the_body() -> None:
    """As vLLM reads it: what is no number is not there."""
    claims = [b"-9", b" 3 ", b"7", b"x", b"", b"\xb2", b"9" * 5000, None]
    assert [urgency({"priority": 2}, -5, claim) for claim in claims] == [-5, 3, 7, 2, 2, 2, 2, 2]
    assert urgency(None, 0, b"4") == 4
