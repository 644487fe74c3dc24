"""One real request through an ASGI app in memory: the server is ready when it can answer, not when it has loaded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


async def post(app: ASGIApp, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """Status and body of a POST."""
    sent: list[Message] = []
    played = False

    async def receive() -> Message:
        nonlocal played
        if played:  # nobody hangs up here; vLLM listens for it until it has answered
            await asyncio.Event().wait()
        played = True
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"warmup")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }
    await app(scope, receive, send)
    status = next(message["status"] for message in sent if message["type"] == "http.response.start")
    return status, b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")


async def warm_up(app: ASGIApp, model: str, tasks: tuple[str, ...]) -> str | None:
    """Run the smallest request that the model can serve; what went wrong, or None."""
    if "generate" in tasks:
        body = {"model": model, "prompt": "Hello, hello, hello,", "max_tokens": 8, "temperature": 0}
        status, answer = await post(app, "/v1/completions", body)
    elif "embed" in tasks:
        status, answer = await post(app, "/v1/embeddings", {"model": model, "input": "Hello"})
    else:
        return None
    return None if status == 200 else f"{status} {answer[:300].decode('utf-8', 'replace')}"
