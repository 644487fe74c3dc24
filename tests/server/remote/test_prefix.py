from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.remote.prefix import prefix_key

SYSTEM = {"role": "system", "content": "You are terse."}


def chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [SYSTEM, *({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))]}


def test_every_turn_of_a_conversation_has_one_key() -> None:
    first = prefix_key(chat("What is a tree?"), 1024)
    assert first == prefix_key(chat("What is a tree?", "A graph.", "And a leaf?"), 1024) is not None
    assert first != prefix_key(chat("What is a bee?"), 1024)


def test_beyond_the_limit_nothing_counts() -> None:
    assert prefix_key(chat("x" * 500 + "a"), 256) == prefix_key(chat("x" * 500 + "b"), 256)
    assert len(prefix_key(chat("x" * 5000), 256) or b"") == 256


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"prompt": [1, 2, 3]}, {"prompt": [1, 2, 4]}),
        ({"prompt": ["a", "b"]}, {"prompt": ["ab"]}),
        ({"input": "a"}, {"input": "b"}),
        ({"input": "a", "instructions": "x"}, {"input": "a", "instructions": "y"}),
        (
            {"system": "x", "messages": [{"role": "user", "content": "a"}]},
            {"messages": [{"role": "user", "content": "a"}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}]},
        ),
    ],
)
def test_different_prompts(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert prefix_key(one, 64) != prefix_key(other, 64)
    assert prefix_key(one, 64) == prefix_key({**one, "temperature": 1, "max_tokens": 5}, 64)


@pytest.mark.parametrize("body", [None, [], "text", 3, {}, {"messages": []}, {"prompt": ""}, {"prompt": None}])
def test_no_prompt(body: Any) -> None:
    assert prefix_key(body, 64) is None


def test_no_affinity() -> None:
    assert prefix_key({"prompt": "a"}, 0) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "system"]), JSON), st.integers(0, 64))
def test_any_json(body: dict[str, Any], limit: int) -> None:
    key = prefix_key(body, limit)
    assert key is None or 1 <= len(key) <= limit


def test_deep_nesting_and_half_characters() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    prefix_key({"prompt": deep}, 64)
    assert prefix_key({"prompt": "\ud800"}, 64)
