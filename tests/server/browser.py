"""A headless Chromium, and a gateway on a socket in front of an engine that plays vLLM's."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from thriftree.plugins.engine.contract_var import CURRENT

MODEL = "toy-model"
WORDS = ("One ", "two ", "<b>three</b> ", "four.")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_PLACES = ("chromium", "chromedriver")
needs_chromium = pytest.mark.skipif(
    not all(map(shutil.which, _PLACES)),
    reason="no chromium here; runs where Debian's packages `chromium` and `chromium-driver` are installed",
)


@contextmanager
def chromium(profile: Path, dark: bool = False, size: tuple[int, int] = (1280, 900)) -> Iterator[Any]:
    """A Selenium driver that keeps what the console says."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The app on a free port of loopback; its address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


async def toy_engine(scope: Scope, receive: Receive, send: Send) -> None:
    """Streams `WORDS`, or fails where the last message asks for it: `refuse` before, `break` within the stream."""
    if scope["path"] == "/v1/models":
        return await _json(send, 200, {"data": [{"id": MODEL}]})
    body = json.loads((await receive())["body"])
    last = body["messages"][-1]["content"]
    if last == "refuse":
        error = {"message": "messages: too many <i>words</i>", "type": "bad", "param": "messages", "code": "x"}
        return await _json(send, 400, {"error": error})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for index, word in enumerate(WORDS):
        if last == "break" and index == 2:
            raise RuntimeError("a bug")
        await _event(send, {"choices": [{"delta": {"content": word}}], "usage": None})
        await asyncio.sleep(0.5 if last == "slow" else 0.02)
    contract = CURRENT.get()
    assert contract is not None
    off = contract.thrift["speculation"] == "off"
    report = contract.report
    report.prompt_tokens, report.completion_tokens, report.steps = 5, 40, 40 if off else 16
    report.drafted, report.accepted = (0, 0) if off else (64, 24)
    await _event(send, {"choices": [], "usage": {"completion_tokens": 40}})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _event(send: Send, event: Any) -> None:
    data = f"data: {json.dumps(event)}\n\n".encode()
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _json(send: Send, status: int, body: Any) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
