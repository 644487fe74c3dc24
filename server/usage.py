"""``usage.thrift``: what the engine counted, spliced into vLLM's answer without re-serialising it.

Why the splice cannot be fooled. vLLM's answers are JSON, where a quote inside a string is written ``\\"``. So the bytes
``"usage":{`` with no backslash before them always are a key named usage with an object under it, never text. Keys that
users choose (a tool's schema, echoed by the Responses API) can have that name too, but deeper: the brackets that are
still to be closed behind the object tell how deep it lies.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*\{')
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)


def block(report: Any, method: str | None) -> dict[str, Any]:
    """The public form of a report; nothing in it that was not counted in the engine."""
    steps = report.steps
    seen, kept = (report.kv_seen, report.kv_kept) if report.kv_seen else (report.prompt_tokens, report.prompt_tokens)
    return {
        "exact": report.exact,
        "steps": steps,
        "tokens_per_step": round(report.completion_tokens / steps, 2) if steps else 0.0,
        "speculation": {"method": method, "drafted": report.drafted, "accepted": report.accepted},
        "kv": {"method": report.kv_method, "tokens_seen": seen, "tokens_kept": kept},
        "vision": {
            "method": report.vision_method,
            "tokens_seen": report.vision_seen,
            "tokens_kept": report.vision_kept,
            **_late(report),
        },
    }


def _late(report: Any) -> dict[str, Any]:
    if report.late_layer is None:
        return {}
    counts = {"tokens_seen": report.late_seen, "tokens_kept": report.late_kept}
    return {"late": {"layer": report.late_layer, "method": report.late_method, **counts}}


def member(report: Any, method: str | None) -> bytes:
    """The same as the bytes of an object's member: ``"thrift":{...}``."""
    return b'"thrift":' + msgspec.json.encode(block(report, method))


def splice(data: bytes, addition: bytes, depth: int = 1) -> bytes | None:
    """`data` with `addition` as the last member of the usage object at nesting `depth` (1: top level), or None."""
    found = _last_usage(data, depth)
    if found is None:
        return None
    start, end = found
    comma = b"" if data[start:end].strip() == b"" else b","
    return b"".join((data[:end], comma, addition, data[end:]))


def _last_usage(data: bytes, depth: int) -> tuple[int, int] | None:
    """Where the last usage object at that depth begins and ends, inside its brackets.

    One pass from the first candidate to the end, however many there are (a client's own tool schema may hold
    thousands): what is still closed at the end, unopened, is how deep the first candidate lay.
    """
    starts = {match.end() for match in _USAGE.finditer(data)}
    if not starts:
        return None
    level = 0
    opened: list[int] = []
    candidates: list[tuple[int, int, int]] = []
    for token in _TOKEN.finditer(data, min(starts) - 1):
        kind = token.group()
        if kind in (b"{", b"["):
            opened.append(token.end())
            level += 1
        elif kind in (b"}", b"]"):
            level -= 1
            if opened and (start := opened.pop()) in starts:
                candidates.append((level, start, token.start()))
    return next(((start, end) for at, start, end in reversed(candidates) if at - level == depth), None)


def splice_events(chunk: bytes, addition: bytes, depth: int = 1) -> bytes:
    """Whole server-sent events, amended wherever one carries a usage object."""
    if _USAGE.search(chunk) is None:
        return chunk
    lines = chunk.split(b"\n")
    for index, line in enumerate(lines):
        if line.startswith(b"data:"):
            lines[index] = splice(line, addition, depth) or line
    return b"\n".join(lines)
