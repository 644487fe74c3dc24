"""What an answer cost, read from its bytes as they pass: for quotas and metrics, at under a microsecond a chunk.

A ``"usage":{`` in JSON is always a key, never text (`server/usage.py` says why), and only where one passes is anything
parsed. Keys that a client chose (a tool's schema, echoed) may have that name too: the largest count wins, so that a
made-up usage can only make a request dearer. A stream that carries no usage is counted by its events, which is an
estimate: with speculation one event may carry several tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import JSONDecoder
from typing import Any

from thriftree.plugins.engine.contract_var import Report

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_LONGEST = 8192  # bytes of a usage object
_CARRY = 32  # bytes in which the key may be cut by the end of a chunk
_CANDIDATES = 16  # of one chunk, its last
_ABSURD = 1 << 40  # tokens: made up
_decode = JSONDecoder().raw_decode


class Meter:
    """Feed it every chunk of one answer; `report` grows."""

    def __init__(self, report: Report, prompt_estimate: int = 0) -> None:
        self.report = report
        self._carry = b""
        self._counted = 0
        report.prompt_tokens = report.prompt_tokens or prompt_estimate
        self._prompt = 0

    def events(self, chunk: bytes) -> None:
        """A chunk of server-sent events."""
        if not self._counted:
            self.report.completion_tokens += chunk.count(b"data: {")
        if self._carry or b'"usage"' in chunk or not chunk.endswith(b"\n"):
            self.feed(chunk)

    def feed(self, chunk: bytes) -> None:
        """A chunk of a JSON answer."""
        data = self._carry + chunk if self._carry else chunk
        cut = self._scan(data) if b'"usage"' in data else len(data)
        if cut < len(data):
            self._carry = data[cut:]
        else:
            self._carry = b"" if data.endswith(b"\n") else data[-_CARRY:]

    def _scan(self, data: bytes) -> int:
        """Reads the usage objects; where one begins that is not whole yet, else the end."""
        for match in list(_USAGE.finditer(data))[-_CANDIDATES:]:
            begin = match.end()
            try:
                usage, _ = _decode(data[begin : begin + _LONGEST].decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                if len(data) - begin < _LONGEST:
                    return match.start()
                continue
            self._count(usage)
        return len(data)

    def _count(self, usage: Mapping[str, Any]) -> None:
        report = self.report
        self._prompt = max(self._prompt, _number(usage, "prompt_tokens", "input_tokens"))
        report.prompt_tokens = self._prompt or report.prompt_tokens
        self._counted = max(self._counted, _number(usage, "completion_tokens", "output_tokens"))
        report.completion_tokens = self._counted or report.completion_tokens
        thrift = usage.get("thrift")
        if isinstance(thrift, dict):
            report.steps = max(report.steps, _number(thrift, "steps"))
            report.exact = report.exact and thrift.get("exact") is not False
            self._speculation(thrift.get("speculation"))

    def _speculation(self, speculation: Any) -> None:
        if isinstance(speculation, dict):
            self.report.drafted = max(self.report.drafted, _number(speculation, "drafted"))
            self.report.accepted = max(self.report.accepted, _number(speculation, "accepted"))
            method = speculation.get("method")
            self.report.method = method[:64] if isinstance(method, str) else self.report.method


def _number(values: Mapping[str, Any], *names: str) -> int:
    """The largest of them that can be a count of tokens."""
    found = (value for name in names if type(value := values.get(name)) is int)
    return max((value for value in found if 0 < value < _ABSURD), default=0)
