"""Real vLLM behind: its own server, then ours, one after the other, with the same model, flags and requests.

The model takes most of every answer's time, and the two do not take turns (each would have to load again): a difference
within the spread says nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from thriftree.benchmarks import prompts
from thriftree.benchmarks.gateway.http import CHAT, Connection, expect, request
from thriftree.benchmarks.gateway.servers import Server, end_with_parent, wait
from thriftree.benchmarks.stats import spread

_START_SECONDS = 240.0
_STOP_SECONDS = 20.0
_TOKENS = 32
_REQUESTS = {1: 12, 4: 24}  # by how many are in flight
_FLAGS = ("--dtype", "float32", "--max-model-len", "4096", "--served-model-name", "clock", "--host", "127.0.0.1")
_STOCK = ("-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
_OURS = ("-m", "thriftree.server.cli", "serve", "--thrift", "off", "--log-file", "-")
Row = dict[str, Any]


def measure(say: Callable[[str], None]) -> list[Row]:
    """Rows per server and concurrency. Raises Failed."""
    from thriftree.server import vllm_args
    from thriftree.zoo import smollm2

    vllm_args.environment()  # the same for both
    model = str(smollm2.ensure())
    rows: list[Row] = []
    contenders = {"vLLM's server": (_STOCK, "/health"), "thriftree --thrift off": (_OURS, "/ready")}
    with tempfile.TemporaryDirectory(prefix="thriftree-bench-") as folder:
        for name, (words, path) in contenders.items():
            with _running(name, [*words, model, *_FLAGS], path, Path(folder) / "log.txt") as server:
                for lanes in _REQUESTS:
                    rows.append(asyncio.run(_ask(server, lanes)))
                    say(f"{name}, {lanes} in flight")
    return rows


@contextmanager
def _running(name: str, words: list[str], path: str, log: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with log.open("wb") as out:
        command = [sys.executable, *words, "--port", str(port)]
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, preexec_fn=end_with_parent)
    server = Server(name, process, port)
    try:
        wait(server, log, path, _START_SECONDS)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):  # what is left of its session
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _ask(server: Server, lanes: int) -> Row:
    """Streamed greedy answers of `_TOKENS` tokens to the benchmark's prompts."""
    texts = [prompt.text[:1500] for members in prompts.load().values() for prompt in members]
    work = iter([_stream(text) for text in (texts * 3)[: _REQUESTS[lanes]]])
    first: list[float] = []
    rate: list[float] = []

    async def lane() -> None:
        connection = await Connection.to(server.port)
        await expect(connection, _stream("Hello"))  # warm
        for data in work:
            reply = await expect(connection, data)
            first.append(reply.first * 1e3)
            rate.append((_TOKENS - 1) / (reply.seconds - reply.first))
        connection.leave()

    await asyncio.gather(*(lane() for _ in range(lanes)))
    row: Row = {"server": server.name, "in flight": lanes, "requests": len(first)}
    for what, found in (("first chunk ms", spread(first)), ("tokens/s of a stream", spread(rate))):
        row |= {what: f"{found.median:.1f}", f"{what}, 10-90 %": f"{found.low:.1f}-{found.high:.1f}"}
    return row


def _stream(text: str) -> bytes:
    messages = [{"role": "user", "content": text}]
    body = {"model": "clock", "messages": messages, "max_tokens": _TOKENS, "temperature": 0}
    return request(CHAT, {**body, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}})
