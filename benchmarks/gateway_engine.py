"""An engine in memory that plays vLLM's chat completions by a token clock, so that only what is in front is measured.

`slots` requests run at once, each gives `rate` tokens per second; the others wait in order, as in the engine's own
queue. It listens for its client as vLLM's handlers do, counts into the request's report, and knows what it still runs.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from starlette.types import Receive, Scope, Send

from thriftree.plugins.engine.contract_var import CURRENT, Report

_TOKEN = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"clock","choices":'
    b'[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"clock","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
)
_DONE = b"data: [DONE]\n\n"


@dataclass
class TokenClock:
    """An ASGI app: ``POST`` anything with ``{"max_tokens": int, "stream": bool}`` in its body."""

    slots: int = 8
    rate: float = 100.0  # tokens per second of one request; 0: as fast as they can be sent
    first: float = 0.0  # seconds before a request's first token
    running: int = 0
    waiting: int = 0
    most_running: int = 0
    finished: int = 0
    aborted: int = 0
    tokens: int = 0
    _free: asyncio.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.slots)

    def set(self, slots: int | None = None, rate: float | None = None, first: float | None = None) -> None:
        """Another speed for the requests to come; other `slots` only while nothing runs."""
        self.rate = self.rate if rate is None else rate
        self.first = self.first if first is None else first
        if slots is not None:
            assert not self.running and not self.waiting
            self.slots, self._free = slots, asyncio.Semaphore(slots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return
        answering = asyncio.ensure_future(self._answer(body, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
        if answering.done():
            answering.result()

    async def _answer(self, body: dict[str, Any], send: Send) -> None:
        contract = CURRENT.get()
        report = contract.report if contract is not None else Report()
        wanted, stream = int(body.get("max_tokens") or 16), body.get("stream") is True
        report.prompt_tokens = len(json.dumps(body.get("messages", ""))) // 4
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await (self._stream(wanted, report, send) if stream else self._whole(wanted, report, send))
            self.finished += 1
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1
            self._free.release()

    async def _stream(self, wanted: int, report: Report, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun = monotonic() + self.first
        for index in range(1, wanted + 1):
            await asyncio.sleep(max(0.0, begun + (index / self.rate if self.rate else 0) - monotonic()))
            self._count(report, 1)
            await send({"type": "http.response.body", "body": _TOKEN, "more_body": True})
        await send({"type": "http.response.body", "body": _LAST, "more_body": True})
        await send({"type": "http.response.body", "body": _usage(report), "more_body": True})
        await send({"type": "http.response.body", "body": _DONE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, wanted: int, report: Report, send: Send) -> None:
        await asyncio.sleep(self.first + (wanted / self.rate if self.rate else 0))
        self._count(report, wanted)
        usage = {"prompt_tokens": report.prompt_tokens, "completion_tokens": wanted}
        usage["total_tokens"] = sum(usage.values())
        message = {"role": "assistant", "content": " word" * wanted}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "clock", "choices": [choice]}
        data = json.dumps({**answer, "usage": usage}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def _count(self, report: Report, tokens: int) -> None:
        report.steps += tokens
        report.completion_tokens += tokens
        self.tokens += tokens


def _usage(report: Report) -> bytes:
    given, made = report.prompt_tokens, report.completion_tokens
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [], "usage": usage}).encode() + b"\n\n"


async def _body(receive: Receive) -> dict[str, Any] | None:
    """The parsed body; None: the client left before it was whole."""
    data, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        data += message.get("body", b"")
        more = message.get("more_body", False)
    parsed = json.loads(data or b"{}")
    return parsed if isinstance(parsed, dict) else {}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
