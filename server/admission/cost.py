"""What a request is likely to cost, in tokens, and how urgent it is: from its body, before the engine sees it. Pure."""

from __future__ import annotations

from typing import Any

from thriftree.server.permits import as_number

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_UNSAID = 256  # completion tokens of a request that names no limit
_LONGEST = 4096  # of one choice: clients ask for far more than answers have
_MOST_CHOICES = 128
_BYTES_PER_TOKEN = 4


def estimate(body_bytes: int, prompt_tokens: int, body: Any, completes: bool = True) -> int:
    """Prompt and completion tokens. `prompt_tokens` 0: not counted, so by the body's length.

    `body` is the parsed body or anything else; values of a wrong type count as unsaid (they are refused elsewhere).
    """
    prompt = prompt_tokens or body_bytes // _BYTES_PER_TOKEN
    if not completes:
        return max(1, prompt)
    fields = body if isinstance(body, dict) else {}
    asked = next((value for name in _LIMITS if (value := _positive(fields.get(name))) is not None), _UNSAID)
    choices = _positive(fields.get("n")) or 1
    return prompt + min(asked, _LONGEST) * min(choices, _MOST_CHOICES)


def urgency(body: Any, best: int, claim: bytes | None = None) -> int:
    """The request's `priority` (lower is earlier, 0 if unsaid), but not better than its key's `best`.

    `claim`: the value of `permits.PRIORITY_HEADER`; where it is a number, vLLM takes that and not the body's.
    """
    asked = as_number(claim) if claim is not None else None
    if asked is None:
        asked = body.get("priority") if isinstance(body, dict) else None
    return max(asked if type(asked) is int else 0, best)


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
