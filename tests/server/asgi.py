"""A client for ASGI apps in memory, and an app that answers as vLLM does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.plugins.engine.contract_var import CURRENT


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    app: ASGIApp,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    more: list[Message] | None = None,
) -> Answer:
    """One request; `more` are what the server says after the body (a disconnect, mostly)."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    inbox: list[Message] = [{"type": "http.request", "body": data, "more_body": False}, *(more or [])]
    sent: list[Message] = []

    async def receive() -> Message:
        return inbox.pop(0) if inbox else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
        "client": ("test", 1),
        "server": ("test", 80),
    }
    await app(scope, receive, send)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    chunks = [message.get("body", b"") for message in sent if message["type"] == "http.response.body"]
    if not starts:
        return Answer(0, {}, b"", chunks)
    head = {k.decode().lower(): v.decode() for k, v in starts[0]["headers"]}
    return Answer(starts[0]["status"], head, b"".join(chunks), chunks)


class FakeEngine:
    """Plays vLLM's app: counts into the contract's report, answers the chunks it was given."""

    def __init__(
        self, chunks: list[bytes], kind: str = "application/json", status: int = 200, listens: bool = False
    ) -> None:
        self.listens = listens
        self.chunks, self.kind, self.status = chunks, kind, status
        self.seen: list[bytes] = []
        self.contracts: list[Any] = []
        self.disconnects = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.seen.append(message.get("body", b""))
        if self.listens and (await receive())["type"] == "http.disconnect":
            self.disconnects += 1
        contract = CURRENT.get()
        self.contracts.append(contract)
        if contract is not None:
            report = contract.report
            report.steps, report.completion_tokens, report.prompt_tokens = 4, 10, 7
            report.drafted, report.accepted = 24, 6
        length = [] if "stream" in self.kind else [(b"content-length", str(sum(map(len, self.chunks))).encode())]
        headers = [(b"content-type", self.kind.encode()), *length]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
