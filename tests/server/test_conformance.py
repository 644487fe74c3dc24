"""The same requests to stock vLLM and to us, same model and flags: answers equal but for ids, times, and our part."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.server import conformance_responses  # noqa: F401  (it adds its cases)
from tests.server.bad_requests import BAD
from tests.server.conformance import CASES, Asking
from tests.server.live import LiveServer, together
from tests.server.stock import StockServer
from thriftree.zoo import tiny

pytestmark = pytest.mark.live
FLAGS = ["--enforce-eager", "--max-model-len", "2048", "--served-model-name", "tiny", "--dtype", "float32"]
TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
#: Made anew for every answer, or ours.
_VARY = {"id", "created", "created_at", "completed_at", "system_fingerprint", "item_id", "call_id", "thrift"}


def comparable(answer: Any) -> Any:
    """Without what varies; names and order of members stay."""
    if isinstance(answer, dict):
        return {key: comparable(value) for key, value in answer.items() if key not in _VARY}
    if isinstance(answer, list | tuple):
        return [comparable(value) for value in answer if value != "thrift"]
    return answer


def differences(stock: Any, ours: Any, where: str = "") -> list[str]:
    """Where two answers differ, floats by more than rounding."""
    if isinstance(stock, dict) and isinstance(ours, dict) and list(stock) == list(ours):
        return [line for key in stock for line in differences(stock[key], ours[key], f"{where}.{key}")]
    if isinstance(stock, list) and isinstance(ours, list) and len(stock) == len(ours):
        pairs = enumerate(zip(stock, ours, strict=True))
        return [line for index, (left, right) in pairs for line in differences(left, right, f"{where}[{index}]")]
    floats = isinstance(stock, float) and isinstance(ours, float)
    same = math.isclose(stock, ours, rel_tol=1e-4, abs_tol=1e-4) if floats else stock == ours
    return [] if same else [f"{where}: stock {stock!r}, ours {ours!r}"]


def outcome(function: Callable[[Asking], Any], asking: Asking) -> Any:
    try:
        return comparable(json.loads(json.dumps(function(asking))))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refusal(http: httpx.Client, name: str) -> Any:
    """Status and error, or just the status where it was answered."""
    method, path, body = BAD[name]
    sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    answer = http.request(method, path, headers={"content-type": "application/json"}, **sent)
    if answer.status_code < 400:
        return [answer.status_code]
    error = answer.json().get("error") if "json" in answer.headers["content-type"] else answer.text
    if not isinstance(error, dict):
        return [answer.status_code, answer.text]
    return [answer.status_code, *(error.get(key) for key in ("type", "param", "code", "message"))]


def record(server: LiveServer) -> dict[str, Any]:
    asking = Asking(server.url)
    answers = {name: outcome(function, asking) for name, function in CASES.items()}
    return answers | {f"bad: {name}": refusal(asking.http, name) for name in BAD}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What the stock server answers and what ours does: started together, asked one after the other."""
    model = str(tiny.ensure("llama-bytes"))
    stock = StockServer(tmp_path_factory.mktemp("stock"), ["--model", model, *FLAGS, *TOOLS])
    ours = LiveServer(tmp_path_factory.mktemp("ours"), [model, *FLAGS, *TOOLS, "--thrift", "exact"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # stock vLLM would take all memory
        with together(stock, ours):
            yield [record(stock), record(ours)]
            assert ours.wait_idle()
    assert ours.code == 0


@pytest.fixture(scope="module")
def stock(both: list[dict[str, Any]]) -> dict[str, Any]:
    return both[0]


@pytest.fixture(scope="module")
def ours(both: list[dict[str, Any]]) -> dict[str, Any]:
    return both[1]


@pytest.mark.parametrize("name", CASES)
def test_answers(stock: dict[str, Any], ours: dict[str, Any], name: str) -> None:
    assert not isinstance(stock[name], str), f"stock: {stock[name]}"
    assert differences(stock[name], ours[name]) == []


#: What vLLM answers where no handler of its own made the error; we give the same status in OpenAI's shape.
_NO_SHAPE = {
    "max_tokens beyond 4300 digits": "bad_request",
    "nested arrays": "bad_request",
    "nested objects": "bad_request",
    "nested and open": "bad_request",
    "invalid utf-8": "bad_request",
    "embeddings": "not_found",
    "unknown route": "route_not_found",
    "wrong method": "method_not_allowed",
    "delete": "method_not_allowed",
}
#: `/v1/messages` has Anthropic's shape in vLLM; here every error has OpenAI's.
_ANTHROPIC = {
    "message huge": "bad_request",
    "message of another model": "not_found",
    "message with an image": "bad_request",
}
#: A value that cannot be encoded for the engine: 500 in vLLM, and the request's state stays in its memory.
_UNWRITABLE = {"top_k huge": "top_k", "lone surrogate in a stop": "stop"}
#: The complaint counts the bad items of a list, of which vLLM goes through all, and we stop at the first.
_FIRST_ITEM = ("prompt mixed", "response of many")
#: 500 in both: a grammar that no text fits is only noticed when nothing can be sampled.
_UNSATISFIABLE = ("schema without an end",)


@pytest.mark.parametrize("name", BAD)
def test_refusals(stock: dict[str, Any], ours: dict[str, Any], name: str) -> None:
    theirs, our = stock[f"bad: {name}"], ours[f"bad: {name}"]
    if name in _NO_SHAPE | _ANTHROPIC:
        assert our[:4] == [theirs[0], "invalid_request_error", None, (_NO_SHAPE | _ANTHROPIC)[name]]
    elif name in _UNWRITABLE:
        assert theirs[0] == 500 and our[:4] == [400, "BadRequestError", _UNWRITABLE[name], 400]
    elif name in _FIRST_ITEM:
        assert our[:4] == theirs[:4] and our[4] != theirs[4]
    else:
        assert our == theirs
        assert our[0] < 500 or name in _UNSATISFIABLE
