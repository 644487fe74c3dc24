from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.engine.contract_var import Report
from thriftree.server.remote.meter import Meter

THRIFT = {"exact": True, "steps": 4, "speculation": {"method": "suffix", "drafted": 24, "accepted": 6}}
USAGE = {"prompt_tokens": 7, "total_tokens": 17, "completion_tokens": 10, "thrift": THRIFT}
COUNTED = Report(steps=4, completion_tokens=10, prompt_tokens=7, drafted=24, accepted=6, method="suffix")


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def answer(text: str = "hello", **more: Any) -> bytes:
    body = {"choices": [{"message": {"content": text}}], "usage": USAGE, **more}
    return json.dumps(body, separators=(",", ":")).encode()


def stream(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, 10_000), max_size=12), st.text(), st.booleans())
def test_json_however_it_is_cut(cuts: list[int], text: str, spaced: bool) -> None:
    data = answer(text, prompt_token_ids=list(range(500)))
    meter = Meter(Report())
    for piece in pieces(json.dumps(json.loads(data), indent=1).encode() if spaced else data, cuts):
        meter.feed(piece)
    assert meter.report == COUNTED


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_stream_however_it_is_cut(cuts: list[int]) -> None:
    meter = Meter(Report())
    for piece in pieces(
        stream({"choices": [1]}, {"choices": [2], "usage": None}, {"choices": [], "usage": USAGE}), cuts
    ):
        meter.events(piece)
    assert meter.report == COUNTED


@pytest.mark.parametrize(
    "usage", [{"input_tokens": 7, "output_tokens": 10}, {"prompt_tokens": 7, "completion_tokens": 10, "more": {"a": 1}}]
)
def test_names_of_all_routes(usage: dict[str, Any]) -> None:
    meter = Meter(Report())
    meter.events(stream({"type": "response.completed", "response": {"usage": usage}}))
    assert (meter.report.prompt_tokens, meter.report.completion_tokens) == (7, 10)


def test_anthropic_usage_in_two_events() -> None:
    meter = Meter(Report())
    meter.events(stream({"message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}, {"delta": "a"}))
    meter.events(stream({"usage": {"output_tokens": 10}}))
    assert (meter.report.prompt_tokens, meter.report.completion_tokens) == (7, 10)


def test_text_is_no_usage() -> None:
    meter = Meter(Report())
    meter.feed(answer('"usage":{"prompt_tokens":1000,"completion_tokens":1000}'))
    assert meter.report == COUNTED


def test_a_made_up_usage_hides_nothing() -> None:
    """A client's own schema, echoed: it can only make the request dearer."""
    made_up = {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    for body in ({"tools": [made_up], "usage": USAGE}, {"usage": USAGE, "tools": [made_up] * 10}):
        meter = Meter(Report())
        meter.feed(json.dumps(body).encode())
        assert meter.report == COUNTED


@pytest.mark.parametrize("odd", [-5, 1.5, True, "9", None, 10**30, [1]])
def test_odd_counts(odd: Any) -> None:
    meter = Meter(Report())
    odds = {"prompt_tokens": odd, "completion_tokens": odd, "thrift": {"steps": odd, "speculation": {"drafted": odd}}}
    meter.feed(json.dumps({"usage": odds}).encode())
    assert meter.report == Report()


@pytest.mark.parametrize("odd", [b'"usage":{' * 3000, b'"usage":{"a":' + b"[" * 9000, b'"usage":{}' * 100_000])
def test_odd_bytes(odd: bytes) -> None:
    meter = Meter(Report())
    for _ in range(3):
        meter.feed(odd)
    assert meter.report == Report()
    assert len(meter._carry) <= 8192 + 32


def test_a_stream_without_usage_is_counted_by_its_events() -> None:
    meter = Meter(Report(), prompt_estimate=5)
    for _ in range(10):
        meter.events(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
    meter.events(b"data: [DONE]\n\n")
    assert (meter.report.prompt_tokens, meter.report.completion_tokens) == (5, 10)


def test_usage_replaces_the_estimate() -> None:
    meter = Meter(Report(), prompt_estimate=50)
    meter.events(b'data: {"choices":[1]}\n\n' * 30)
    meter.events(stream({"usage": USAGE}))
    meter.events(b'data: {"late":1}\n\n')
    assert meter.report == COUNTED
