"""The prompt in a request's body, whatever the route: its texts, its token ids, its images. Bad bodies have none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

#: Fields that the engine reads a prompt from, over all its routes.
FIELDS = (
    "messages",
    "prompt",
    "input",
    "instructions",
    "system",
    "tools",
    "suffix",
    "query",
    "queries",
    "documents",
    "text_1",
    "text_2",
)
_MEDIA = frozenset({"image_url", "input_image", "image", "image_pil", "image_embeds", "video_url", "input_audio"})
_NOT_TEXT = frozenset({"type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "status", "cache_control"})


@dataclass(slots=True)
class Prompt:
    texts: list[str] = field(default_factory=list)
    ids: int = 0  # tokens that came as ids
    messages: int = 0
    media: int = 0  # images, videos, sounds
    cut: bool = False  # there is more of it, which was not read

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def prompt_of(body: dict[str, Any], most: float = math.inf) -> Prompt:
    """Everything in the body that becomes prompt tokens; of more than `most` values, a part, and it says so.

    One pass without recursion, so depth does not matter.
    """
    found, todo = Prompt(), [body[name] for name in FIELDS if body.get(name) is not None]
    for name in ("messages", "input"):
        value = body.get(name)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            found.messages = len(value)
    left = most
    while todo and left > 0:
        left -= 1
        _read(todo.pop(), found, todo)
    found.cut = bool(todo)
    return found


def prompts_in(body: dict[str, Any]) -> int:
    """How many prompts the body has: lists of texts or of lists of ids count each."""
    for name in ("prompt", "input"):
        value = body.get(name)
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            return len(value)
    return 1


def _read(one: Any, found: Prompt, todo: list[Any]) -> None:
    if isinstance(one, str):
        found.texts.append(one)
    elif isinstance(one, int | float):  # a token's id; a stray flag counts as one
        found.ids += 1
    elif isinstance(one, list):
        if one and isinstance(one[0], int):
            found.ids += len(one)
        else:
            todo += one
    elif isinstance(one, dict):
        kind = one.get("type")
        if (isinstance(kind, str) and kind in _MEDIA) or "image_url" in one:
            found.media += 1
        else:
            todo += [part for name, part in one.items() if name not in _NOT_TEXT]
