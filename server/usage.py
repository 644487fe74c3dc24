"""``usage.thrift``: what the engine counted, spliced into vLLM's answer without re-serialising it.

Why the splice cannot be fooled. vLLM's answers are JSON, where a quote inside a string is written ``\\"``. So the bytes
``"usage":{`` with no backslash before them always are a key named usage with an object under it, never text. Keys that
users choose (a tool's schema, echoed by the Responses API) can have that name too, but deeper: the brackets that are
still to be closed behind the object tell how deep it lies.
"""

from __future__ import annotations

import json
import re
from typing import Any

_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*\{')
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)


def block(report: Any, method: str | None) -> dict[str, Any]:
    """The public form of a report; nothing in it that was not counted in the engine."""
    steps = report.steps
    return {
        "exact": report.exact,
        "steps": steps,
        "tokens_per_step": round(report.completion_tokens / steps, 2) if steps else 0.0,
        "speculation": {"method": method, "drafted": report.drafted, "accepted": report.accepted},
        "kv": {"method": None, "tokens_seen": report.prompt_tokens, "tokens_kept": report.prompt_tokens},
        "vision": {"method": None, "tokens_seen": 0, "tokens_kept": 0},
    }


def member(report: Any, method: str | None) -> bytes:
    """The same as the bytes of an object's member: ``"thrift":{...}``."""
    return b'"thrift":' + json.dumps(block(report, method), separators=(",", ":")).encode()


def splice(data: bytes, addition: bytes, depth: int = 1) -> bytes | None:
    """`data` with `addition` as the last member of the usage object at nesting `depth` (1: top level), or None."""
    for found in reversed(list(_USAGE.finditer(data))):
        end, behind = _close(data, found.end())
        if end is not None and behind == depth:
            comma = b"" if data[found.end() : end].strip() == b"" else b","
            return b"".join((data[:end], comma, addition, data[end:]))
    return None


def _close(data: bytes, start: int) -> tuple[int | None, int]:
    """Where the object that was opened before `start` ends, and how many brackets are still closed behind it."""
    open_here, end, behind = 1, None, 0
    for token in _TOKEN.finditer(data, start):
        kind = token.group()
        if kind[0] == 0x22:  # a string
            continue
        step = 1 if kind in (b"{", b"[") else -1
        if end is None:
            open_here += step
            if open_here == 0:
                end = token.start()
        else:
            behind -= step
    return end, behind


def splice_events(chunk: bytes, addition: bytes, depth: int = 1) -> bytes:
    """Whole server-sent events, amended wherever one carries a usage object."""
    if _USAGE.search(chunk) is None:
        return chunk
    lines = chunk.split(b"\n")
    for index, line in enumerate(lines):
        if line.startswith(b"data:"):
            lines[index] = splice(line, addition, depth) or line
    return b"\n".join(lines)
