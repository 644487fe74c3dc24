"""Parts of messages whose type is null: found in any body, and refused before the model sees them."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from fastapi import Body
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from thriftree.server.part_types import null_type, refuse_null_types


class Refused(Exception):
    def __init__(self, why: str, field: str) -> None:
        super().__init__(why)
        self.field = field


class Ask(BaseModel):
    messages: list[dict[str, Any]]


def said(*contents: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


TEXT = {"type": "text", "text": "a"}
values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "content", "a"]), inner),
    max_leaves=12,
)


@given(values, st.lists(values, max_size=3))
def test_whatever_a_body_is(body: Any, parts: list[Any]) -> None:
    null_type(body)
    null_type({"messages": body})
    first = next((j for j, part in enumerate(parts) if isinstance(part, dict) and part.get("type", 1) is None), None)
    expected = None if first is None else f"messages[1].content[{first}].type"
    assert null_type(said("words", parts)) == expected


@pytest.mark.parametrize("part", [{}, {"image_url": "x"}, {"type": "null"}, {"type": 0}, {"type": ""}, "text", None])
def test_other_parts_are_not_ours(part: Any) -> None:
    assert null_type(said([TEXT, part])) is None


def test_a_request_model_refuses_it_first() -> None:
    refuse_null_types(Ask, Refused)
    adapter: Any = TypeAdapter(Annotated[Ask, Body()])
    for validate in (adapter.validate_python, Ask.model_validate):
        assert validate(said([TEXT])).messages[0]["content"] == [TEXT]
        with pytest.raises(Refused, match=r"messages\[1\]\.content\[2\]\.type: must be a string") as told:
            validate({**said("b", [TEXT, TEXT, {**TEXT, "type": None}]), "more": 1})
        assert told.value.field == "messages[1].content[2].type"
    with pytest.raises(ValueError, match="messages"):
        adapter.validate_python({"messages": 3})
