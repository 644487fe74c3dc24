"""A part of a message whose `type` is null: refused by its name, before vLLM goes on to take it apart.

vLLM guesses the type of such a part, lets its picture through its processor, and then trips over the null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from pydantic_core import SchemaValidator


def null_type(body: Any) -> str | None:
    """Where the first of them is, as ``messages[i].content[j].type``; None: nowhere. Nothing but parts is looked at."""
    messages = body.get("messages") if isinstance(body, dict) else None
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type", part) is None:
                return f"messages[{i}].content[{j}].type"
    return None


def refuse_null_types(model: type[BaseModel], error: Callable[[str, str], Exception]) -> None:
    """Put the check before a request model's own, for routes that are made from now on.

    Args:
        model: with ``messages``. FastAPI has parsed the body by then: nothing is parsed for this.
        error: made of a message and the field's name.
    """

    def check(body: Any) -> Any:
        where = null_type(body)
        if where is not None:
            raise error(f"{where}: must be a string, as in 'text' or 'image_url', not null", where)
        return body

    schema: Any = model.__pydantic_core_schema__
    node = schema["schema"] if schema["type"] == "definitions" else schema
    inner = dict(node)
    node.clear()
    node.update(type="function-before", function={"type": "no-info", "function": check}, schema=inner)
    model.__pydantic_validator__ = SchemaValidator(schema, _use_prebuilt=False)
