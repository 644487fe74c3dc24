"""What a prompt begins with: the key that brings requests with a common beginning to the same engine.

Of a conversation only the part up to its first user message counts, however long it has become: each of its turns has
the same key, and so has every conversation that shares a system prompt longer than the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_DEPTH = 12  # of nested content parts; what lies deeper does not choose the engine
_LEADS = ("instructions", "system")  # of the Responses and Messages APIs: in front of everything else
_PROMPTS = ("messages", "prompt", "input")


def prefix_key(body: Any, limit: int) -> bytes | None:
    """The first `limit` bytes of the prompt in a parsed body; None where there is none, or `limit` is 0."""
    if not isinstance(body, dict) or limit < 1:
        return None
    prompts = [body[name] for name in _PROMPTS if body.get(name)]
    if not prompts:
        return None
    key = bytearray()
    for text in _texts([*(body.get(name) for name in _LEADS), _opening(prompts[0])], _DEPTH):
        key += text[: limit - len(key)].encode("utf-8", "surrogatepass") + b"\0"
        if len(key) >= limit:
            break
    return bytes(key[:limit]) or None


def _opening(prompt: Any) -> Any:
    """A conversation up to its first user message; every other prompt whole."""
    if not isinstance(prompt, list):
        return prompt
    for index, message in enumerate(prompt):
        if isinstance(message, dict) and message.get("role") == "user":
            return prompt[: index + 1]
    return prompt


def _texts(value: Any, depth: int) -> Iterator[str]:
    """The strings and numbers in a value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int | float):
        yield str(value)
    elif depth:
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from _texts(part, depth - 1)
