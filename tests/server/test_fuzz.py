"""Bodies made from vLLM's own OpenAPI schema, and by hand: never a 5xx, always OpenAI's shape, nobody is disturbed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.bad_requests import BAD, CHAT_PATH, TEXT_PATH, image
from tests.server.live import LiveServer
from thriftree.zoo import tiny

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis makes the bodies (dev dependency)")

pytestmark = pytest.mark.live
FLAGS = ["--enforce-eager", "--max-model-len", "256", "--served-model-name", "tiny", "--dtype", "float32"]
OPEN = ["--routes-allow", "/openapi.json", "--limits-body-seconds", "2", "--limits-header-seconds", "2"]
NORMAL = {"model": "tiny", "prompt": "one two one two", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
#: A grammar that no text fits is noticed when nothing can be sampled, and vLLM calls that an internal error.
UNSATISFIABLE = ("schema without an end",)
SECONDS = 5.0  # for any one answer, on a busy machine
GROWTH = 150 << 20  # bytes of this server's own process over everything in this file
OPERATIONS = (
    ("POST", CHAT_PATH),
    ("POST", TEXT_PATH),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{response_id}"),
    ("POST", "/v1/responses/{response_id}/cancel"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/version"),
)
#: Members that only cost time where they are large: hypothesis may have its way with the others.
LIMITS = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4, "n": 2, "best_of": 2, "min_tokens": 0}


class Neighbour(threading.Thread):
    """Asks the same all the time; its answers must not change."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.stop = f"{url}{TEXT_PATH}", threading.Event()
        self.expected = self.ask()
        self.wrong: list[str] = []
        self.asked = 0
        self.slowest = 0.0
        self.start()

    def ask(self) -> str:
        return httpx.post(self.url, json=NORMAL, timeout=30).text.split('"choices"')[1].split('"usage"')[0]

    def run(self) -> None:
        while not self.stop.wait(0.02):
            begun = time.monotonic()
            try:
                if (got := self.ask()) != self.expected:
                    self.wrong.append(got)
            except Exception as error:
                self.wrong.append(repr(error))
            self.asked += 1
            self.slowest = max(self.slowest, time.monotonic() - begun)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    model = str(tiny.ensure("llama-bytes"))
    with LiveServer(tmp_path_factory.mktemp("fuzzed"), [model, *FLAGS, *OPEN]) as live:
        live.metric("vllm:num_requests_running")
        before = resident(live)
        neighbour = Neighbour(live.url)
        yield live
        neighbour.stop.set()
        neighbour.join(30)
        print(f"\nneighbour: {neighbour.asked} answers, slowest {neighbour.slowest:.2f} s;", end=" ")
        print(f"{(resident(live) - before) >> 20} MiB more")
        assert neighbour.asked > 20 and neighbour.wrong == []
        assert neighbour.slowest < SECONDS
        assert live.wait_idle()
        assert resident(live) - before < GROWTH
    assert live.code == 0


def resident(server: LiveServer) -> int:
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) << 10


#: Of the pinned vLLM's own handlers: an input item of a Responses request that is an earlier refusal is read as text.
VLLM_BUGS = ("'ResponseOutputRefusal' object has no attribute 'text'",)


def check(answer: httpx.Response, known: bool = False) -> Any:
    """A refusal in OpenAI's shape, or no refusal; its error."""
    if answer.status_code < 400:
        return None
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert answer.headers["x-request-id"]
    assert (answer.status_code < 500 and answer.status_code != 422) or known, (answer.status_code, error)
    return error


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(server: LiveServer, name: str) -> None:
    method, path, body = BAD[name]
    sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    begun = time.monotonic()
    answer = httpx.request(
        method, f"{server.url}{path}", headers={"content-type": "application/json"}, timeout=30, **sent
    )
    assert time.monotonic() - begun < SECONDS
    check(answer, known=name in UNSATISFIABLE)


def test_bad_requests_at_once(server: LiveServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: test_bad_requests(server, name), BAD))


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_of_100_mb(server: LiveServer, declared: bool) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * (1 << 20)

    length = {"content-length": str(100 << 20)} if declared else {}
    answer = httpx.post(
        f"{server.url}{TEXT_PATH}", content=parts(), headers={"content-type": "application/json", **length}, timeout=30
    )
    assert answer.status_code == 413 and check(answer)["code"] == "body_too_large"


def test_a_body_of_many_values(server: LiveServer) -> None:
    begun = time.monotonic()
    body = b'{"prompt": "a", "x": [' + b"[]," * (20 << 20) + b"0]}"
    answer = httpx.post(
        f"{server.url}{TEXT_PATH}", content=body, headers={"content-type": "application/json"}, timeout=30
    )
    assert answer.status_code == 413 and check(answer)["code"] == "body_too_complex"
    assert time.monotonic() - begun < SECONDS


def test_a_list_of_mistakes(server: LiveServer) -> None:
    """Of 3,000 such items vLLM makes 708,001 complaints in eight seconds, and takes gigabytes for it."""
    body = {"model": "tiny", "input": [{"type": "no"}] * 100_000}
    begun = time.monotonic()
    answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=30)
    assert answer.status_code == 400 and check(answer)["param"] == "body.input"
    assert time.monotonic() - begun < SECONDS


def test_a_large_body_within_the_limit(server: LiveServer) -> None:
    answer = httpx.post(f"{server.url}{TEXT_PATH}", json={**NORMAL, "prompt": "a" * (20 << 20)}, timeout=30)
    assert answer.status_code == 400 and check(answer)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 400),
        ({"content-type": "application/xml"}, 400),
        ({"content-type": "\xff".encode("latin-1")}, 400),
        ({}, 400),
        ({"content-type": "application/json; charset=latin-9"}, 200),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 200),
        ({"content-type": "application/json", "x-thriftree-timeout": "nan"}, 400),
        ({"content-type": "application/json", "x-thriftree-timeout": "-1"}, 400),
        ({"content-type": "application/json", "x-request-id": "a\x85b" + "x" * 10_000}, 200),
        ({"content-type": "application/json", "x-vllm-priority": "9" * 5000}, 200),
    ],
)
def test_headers(server: LiveServer, headers: dict[str, Any], status: int) -> None:
    sent = {name: value.encode("latin-1") if isinstance(value, str) else value for name, value in headers.items()}
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 2}'
    answer = httpx.post(f"{server.url}{TEXT_PATH}", content=body, headers=sent, timeout=30)
    assert answer.status_code == status, answer.text
    check(answer)
    assert len(answer.headers["x-request-id"]) == 32


def test_line_breaks_in_a_request_id(server: LiveServer) -> None:
    told = raw(server, b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a%0d%0ax: y\r\nconnection: close\r\n\r\n")
    assert told.count(b"x-request-id") == 1 and b"%0d" not in told
    told = raw(server, b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a\rx: y\r\nconnection: close\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400") and b'"invalid_http"' in told


def test_a_body_that_drips(server: LiveServer) -> None:
    head = f"POST {TEXT_PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
    begun = time.monotonic()
    told = raw(server, head.encode(), *[b" "] * 60, pause=0.1)
    assert told.startswith(b"HTTP/1.1 408") and b'"body_timeout"' in told
    assert time.monotonic() - begun < SECONDS + 2


def test_a_head_of_20_mb(server: LiveServer) -> None:
    told = raw(server, b"GET /health HTTP/1.1\r\nx: ", *[b"a" * (1 << 20)] * 20)
    assert told.startswith(b"HTTP/1.1 431") and b'"headers_too_large"' in told


def test_nothing_is_fetched(server: LiveServer) -> None:
    """A text model is told so before anybody looks at where the picture lies."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.png"
        answer = httpx.post(f"{server.url}{CHAT_PATH}", json=image(url)[2], timeout=30)
        assert answer.status_code == 400 and check(answer)
        with pytest.raises(TimeoutError):
            trap.accept()


def raw(server: LiveServer, *parts: bytes, pause: float = 0) -> bytes:
    """What the server says to those bytes, until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as sock:
        try:
            for part in parts:
                sock.sendall(part)
                time.sleep(pause)
        except ConnectionError:
            pass  # it has answered and closed
        try:
            while chunk := sock.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
    return answer


def affordable(body: Any) -> Any:
    """The same body where only its cost is bounded; whatever has a wrong type keeps it."""
    if not isinstance(body, dict):
        return body
    large = {key for key, most in LIMITS.items() if type(body.get(key)) is int and most < body[key] < 1 << 14}
    missing = {"max_tokens", "max_output_tokens"} - body.keys()
    return {**body, **{key: LIMITS[key] for key in sorted(large | missing)}}


def fuzz(server: LiveServer, method: str, path: str, examples: int) -> None:
    schema = schemathesis.openapi.from_dict(httpx.get(f"{server.url}/openapi.json").json())
    operation = schema[path][method]
    has_body = method == "POST" and "{" not in path
    kinds = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE][: 2 if has_body else 1]
    quiet = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @quiet
    @given(case=st.one_of(map(operation.as_strategy, kinds)), known=st.booleans())
    def run(case: Any, known: bool) -> None:
        if isinstance(case.body, dict) and known:
            case.body = {**case.body, "model": "tiny"}
        case.body = affordable(case.body)
        sent = case.as_transport_kwargs(base_url=server.url)
        allowed = {key: sent[key] for key in ("method", "url", "headers", "params", "json", "data") if sent.get(key)}
        answer = httpx.request(**allowed, timeout=30)
        check(answer, known=any(bug in answer.text for bug in VLLM_BUGS))

    run()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_generated_bodies(server: LiveServer, method: str, path: str) -> None:
    fuzz(server, method, path, 60 if method == "POST" else 10)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_many_generated_bodies(server: LiveServer, method: str, path: str) -> None:
    fuzz(server, method, path, 1000)
