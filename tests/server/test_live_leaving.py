"""Clients that leave and deadlines that pass, on a real engine: it must stop working for them."""

from __future__ import annotations

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.live import LiveServer
from thriftree.zoo import smollm2

pytestmark = pytest.mark.live
TALE = "Tell me a very long story about a ship."
CHAT = {"messages": [{"role": "user", "content": TALE}], "max_tokens": 1500, "ignore_eos": True}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat, n=2": ("/v1/chat/completions", {**CHAT, "n": 2, "temperature": 0.9}),
    "completions": ("/v1/completions", {"prompt": TALE, "max_tokens": 1500, "ignore_eos": True}),
    "responses": ("/v1/responses", {"input": TALE, "max_output_tokens": 1500, "ignore_eos": True}),
    # No `ignore_eos` in this API: the hottest sampling makes an early end improbable.
    "messages": ("/v1/messages", {**CHAT, "model": smollm2.NAME, "temperature": 2.0}),
}
DEADLINE = 0.6


@pytest.fixture(scope="module")
def server(default_server: LiveServer) -> LiveServer:
    return default_server


def running(server: LiveServer) -> float:
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


def busy(server: LiveServer) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if running(server) >= 1:
            return True
        time.sleep(0.02)
    return False


def rest(server: LiveServer) -> None:
    assert server.wait_idle()
    assert server.metric("thriftree_running") == 0 == server.metric("thriftree_queue_depth")
    assert server.metric("vllm:kv_cache_usage_perc") == 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_aborted_at_once(server: LiveServer, route: str, stream: bool) -> None:
    path, body = ROUTES[route]
    body = {**body, "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode() + data)
        assert busy(server)
        time.sleep(0.3)
        if stream:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        before = server.metric("vllm:generation_tokens_total")
        assert running(server), "it ended by itself: this shows nothing"
    left = time.monotonic()
    while running(server):
        assert time.monotonic() - left < 20, "still generating"
        time.sleep(0.01)
    print(f"\n{route}, stream={stream}: engine at rest {1e3 * (time.monotonic() - left):.0f} ms after the client left")
    # In tokens and not in seconds, which a busy machine stretches: an abort is a few steps away, the end 1,500 tokens.
    assert server.metric("vllm:generation_tokens_total") - before < 400
    rest(server)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_aborts_in_the_engine(server: LiveServer, route: str, stream: bool) -> None:
    path, body = ROUTES[route]
    patience = {"x-thriftree-timeout": str(DEADLINE)}
    begun = time.monotonic()
    answer = httpx.post(f"{server.url}{path}", json={**body, "stream": stream}, headers=patience, timeout=30)
    assert time.monotonic() - begun >= 0.9 * DEADLINE
    text = answer.text
    if stream and answer.status_code == 200:
        error = json.loads(text.rstrip().rpartition("data: ")[2])["error"]
    else:
        assert answer.status_code == 408
        error = answer.json()["error"]
    assert error["code"] == "deadline_total" and set(error) == {"message", "type", "param", "code"}
    rest(server)


def test_a_crowd_that_vanishes_leaves_nothing(server: LiveServer) -> None:
    chance = random.Random(1)

    def vanish(index: int) -> int:
        path, body = ROUTES[chance.choice(list(ROUTES))]
        patience = httpx.Timeout(chance.uniform(0.05, 1.5), connect=5)
        try:
            with (
                httpx.Client(timeout=patience) as client,
                client.stream("POST", f"{server.url}{path}", json={**body, "stream": index % 2 == 0}) as answer,
            ):
                for _, _ in zip(range(chance.randint(0, 20)), answer.iter_bytes(), strict=False):
                    pass
                return answer.status_code
        except httpx.TimeoutException:
            return 0

    with ThreadPoolExecutor(40) as pool:
        statuses = set(pool.map(vanish, range(200)))
    assert {0, 429} <= statuses <= {0, 200, 429}
    rest(server)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "max_tokens": 4}, timeout=60)
    assert answer.status_code == 200


def test_last_of_all_stopping_lets_answers_finish(server: LiveServer) -> None:
    """Here, because no file after this one uses that server."""
    body = {**CHAT, "max_tokens": 80, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(server.stop)
            events = [line.removeprefix("data: ") for line in lines if line]
            assert events[-1] == "[DONE]"
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
            assert code.result() == 0
