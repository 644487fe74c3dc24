"""Two real servers on a tiny model with the gateway in front; one is killed while it answers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.live import LiveServer
from thriftree.zoo import tiny

pytestmark = pytest.mark.live
CHAT = "/v1/chat/completions"


class Killable(LiveServer):
    """A real server that dies without a word, with its engine processes, as when its machine goes."""

    def kill(self) -> None:
        family = _family(self._process.pid)
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        self.code = self._process.wait(20)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [pid]
    for task in children.parent.parent.iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


class Stream(threading.Thread):
    """One streamed answer, its events as they come."""

    def __init__(self, url: str, prompt: str) -> None:
        super().__init__(daemon=True)
        self.url, self.prompt = url, prompt
        self.events: list[str] = []
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        messages = [{"role": "user", "content": self.prompt}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 1800, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", self.url + CHAT, json=body, timeout=120) as got:
            for line in got.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    if len(self.events) > 5:
                        self.begun.set()


def ask(url: str, prompt: str) -> Any:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 4}
    return httpx.post(url + CHAT, json=body, timeout=120)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Killable, Killable]]:
    flags = [str(tiny.ensure("llama-gqa")), "--served-model-name", "tiny", "--max-model-len", "2048"]
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Killable(tmp_path / name, [*flags, "--max-num-seqs", "4", "--enforce-eager"]))
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.start("/ready"), made))
        yield made[0], made[1]
    finally:
        for server in made:
            server.stop()


def test_one_of_two_engines_is_killed_mid_stream(engines: tuple[Killable, Killable], tmp_path: Path) -> None:
    flags = ["--engine", engines[0].url, "--engine", engines[1].url, "--remote-prefix-bytes", "0"]
    with LiveServer(tmp_path, flags) as gateway:
        assert gateway.ready_seconds < 25
        streams = [Stream(gateway.url, prompt) for prompt in ("Tell me of trees.", "Tell me of bees.")]
        for stream in streams:
            assert stream.begun.wait(60)
        assert [engine.metric("vllm:num_requests_running") for engine in engines] == [1, 1]

        engines[0].kill()
        killed = time.monotonic()
        while all(stream.is_alive() for stream in streams):
            assert time.monotonic() - killed < 30
            time.sleep(0.01)
        lost, lives = sorted(streams, key=threading.Thread.is_alive)
        assert json.loads(lost.events[-1])["error"]["code"] == "engine_lost"
        seen = len(lives.events)

        for number in range(10):
            answer = ask(gateway.url, f"Count to {number}.")
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["thrift"]["steps"] >= 1
        assert len(lives.events) > seen or not lives.is_alive()
        lives.join(90)
        assert lives.events[-1] == "[DONE]" and not any('"error"' in event for event in lives.events)

        assert httpx.get(f"{gateway.url}/ready").status_code == 200
        text = httpx.get(f"{gateway.url}/metrics").text
        assert f'thriftree_upstream_up{{engine="{engines[0].url}"}} 0.0' in text
        assert f'thriftree_upstream_up{{engine="{engines[1].url}"}} 1.0' in text
        assert f'thriftree_upstream_requests_total{{engine="{engines[0].url}",outcome="broken"}} 1.0' in text
        methods = httpx.get(f"{gateway.url}/v1/thrift/methods").json()
        assert any(method["available"] for method in methods["methods"])
    assert gateway.code == 0, gateway.console
