"""What a body full of mistakes may cost."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from fastapi import Body
from pydantic import BaseModel, TypeAdapter, ValidationError

from thriftree.server.fail_fast import fail_fast


class Item(BaseModel):
    kind: str


class Ask(BaseModel):
    items: str | list[Item | int]
    more: list[list[int]] = []


def complaints(body: Any) -> int:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[Ask, Body()]).validate_python(body)
    return caught.value.error_count()


def test_one_bad_item_is_enough() -> None:
    body = {"items": [{}] * 1000, "more": [["x"] * 100] * 10}
    assert complaints(body) == 1 + 2 * 1000 + 1000
    assert fail_fast(Ask) == 3
    assert complaints(body) == 1 + 2 + 1
    assert TypeAdapter(Annotated[Ask, Body()]).validate_python({"items": [{"kind": "a"}, 3]}).items == [
        Item(kind="a"),
        3,
    ]
