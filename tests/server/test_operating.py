"""A server as an operator runs it: keys with caps and quotas, an orderly end, and an engine that dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.live import LiveServer, together
from thriftree.zoo import tiny

pytestmark = pytest.mark.live
KEYS = """
tenants:
  acme: {weight: 2}
keys:
  - {name: one, key: key-one-0123456789, tenant: acme, quota: {requests_per_minute: 3}}
  - {name: two, key: key-two-0123456789, tenant: umbrella, caps: {max_tokens: 8}}
  - {name: free, key: key-free-0123456789, tenant: acme}
"""
DRAIN_SECONDS = 2


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-{name}-0123456789"}


FREE = bearer("free")
#: Without drafts, which would shorten it on some machines to less than the drain allows.
LONG = {"prompt": "a b c", "max_tokens": 1950, "ignore_eos": True, "temperature": 0, "thrift": "off"}


def flags(folder: Path, *more: str) -> list[str]:
    (folder / "keys.yaml").write_text(KEYS)
    model = str(tiny.ensure("llama-gqa"))
    quick = ["--enforce-eager", "--max-model-len", "2048", "--served-model-name", "tiny"]
    return [model, *quick, "--auth-keys-file", str(folder / "keys.yaml"), "--drain-timeout", str(DRAIN_SECONDS), *more]


class Stream(threading.Thread):
    """A long streamed answer, and what came of it."""

    def __init__(self, server: LiveServer) -> None:
        super().__init__(daemon=True)
        self.url, self.events = f"{server.url}/v1/completions", list[str]()
        self.failure: Exception | None = None
        self.start()
        end = time.monotonic() + 30
        while len(self.events) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.events) >= 4, self.failure

    def run(self) -> None:
        try:
            with httpx.stream("POST", self.url, json={**LONG, "stream": True}, headers=FREE, timeout=60) as got:
                for line in got.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line[6:])
        except Exception as error:
            self.failure = error

    def last_error(self) -> dict[str, Any]:
        self.join(20)
        assert not self.is_alive() and self.failure is None, self.failure
        errors = [json.loads(event)["error"] for event in self.events if event.startswith('{"error"')]
        assert len(errors) == 1, self.events[-3:]
        return dict(errors[0])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiveServer]]:
    """Three, since each of three tests ends one."""
    folders = [tmp_path_factory.mktemp(name) for name in ("operated", "dying", "twice")]
    more = (["--access-log", str(folders[0] / "access.jsonl")], [], ["--drain-timeout", "60"])
    made = [LiveServer(folder, flags(folder, *words)) for folder, words in zip(folders, more, strict=True)]
    with together(*made):
        yield made


@pytest.fixture
def server(servers: list[LiveServer]) -> LiveServer:
    return servers[0]


def post(server: LiveServer, headers: dict[str, str], **body: Any) -> httpx.Response:
    body = {"prompt": "a b c", "max_tokens": 4, "temperature": 0, **body}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)


def test_keys(server: LiveServer) -> None:
    assert post(server, {}).status_code == 401
    refused = post(server, bearer("none"))
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert post(server, FREE).status_code == 200
    assert httpx.get(f"{server.url}/v1/models", headers=FREE).status_code == 200


def test_caps(server: LiveServer) -> None:
    allowed = post(server, bearer("two"), max_tokens=8, ignore_eos=True)
    assert allowed.json()["usage"]["completion_tokens"] == 8
    refused = post(server, bearer("two"), max_tokens=9)
    assert refused.status_code == 403 and refused.json()["error"]["param"] == "max_tokens"
    capped = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": "a b", "ignore_eos": True}, headers=bearer("two"), timeout=60
    )
    assert capped.json()["usage"]["completion_tokens"] == 8


def test_quotas(server: LiveServer) -> None:
    answers = [post(server, bearer("one")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 21
    assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert post(server, FREE).status_code == 200


def test_the_access_log_has_one_line_each_and_no_secrets(server: LiveServer) -> None:
    post(server, {**FREE, "x-request-id": "find-me"})
    folder = server.folder
    end = time.monotonic() + 5
    while "find-me" not in (text := (folder / "access.jsonl").read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    line = next(json.loads(line) for line in text.splitlines() if "find-me" in line)
    assert (line["status"], line["tenant"], line["completion_tokens"]) == (200, "acme", 4)
    assert "key-free" not in text and "a b c" not in text


def test_drain(server: LiveServer) -> None:
    """Last: the server ends. The running stream gets its seconds and then an error event; newcomers get 503."""
    stream = Stream(server)
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    while httpx.get(f"{server.url}/ready").status_code == 200:
        assert time.monotonic() - begun < 2
    assert httpx.get(f"{server.url}/health").status_code == 200
    late = post(server, FREE)
    assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
    assert stream.last_error()["code"] == "draining"
    assert DRAIN_SECONDS - 0.5 <= time.monotonic() - begun <= DRAIN_SECONDS + 8
    assert server.wait() == 0


def test_an_engine_that_dies(servers: list[LiveServer]) -> None:
    server = servers[1]
    stream = Stream(server)
    os.kill(server.child("EngineCore"), signal.SIGKILL)
    died = time.monotonic()
    assert stream.last_error()
    try:
        while httpx.get(f"{server.url}/ready").status_code == 200:
            assert time.monotonic() - died < 5
    except httpx.HTTPError:
        assert time.monotonic() - died < 20  # it has left by now
    assert server.wait() == 1
    assert "the engine died" in server.console


def test_a_second_signal_ends_at_once(servers: list[LiveServer]) -> None:
    server = servers[2]
    stream = Stream(server)
    server.signal(signal.SIGTERM)
    time.sleep(0.5)
    assert stream.is_alive()
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0 and time.monotonic() - begun < 20  # and not 60
