"""The splice adds one member at one place and nothing else, whatever the answer's text says."""

from __future__ import annotations

import json
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.engine.contract_var import Report
from thriftree.server.usage import member, splice, splice_events

ADD = b'"thrift":{"steps":3}'
TRAPS = (
    '"usage":{',
    '{"usage":{"a":1}}',
    '\\"usage\\":{',
    "usage",
    '"}],"usage":{"x":1}',
    "\n\ndata: ",
    "\\",
    "é\u2028",
)
text = st.one_of(st.text(), st.sampled_from(TRAPS), st.lists(st.sampled_from(TRAPS)).map("".join))
keys = st.one_of(text, st.just("usage"))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
usages = st.dictionaries(text, st.integers() | st.none() | st.dictionaries(keys, st.integers(), max_size=2), max_size=4)
others = st.dictionaries(text.filter(lambda key: key != "usage"), anything, max_size=4)


def dump(value: Any, spaced: bool, ascii_only: bool) -> bytes:
    marks = (", ", ": ") if spaced else (",", ":")
    return json.dumps(value, separators=marks, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@given(others, usages, others, st.booleans(), st.booleans())
def test_top_level(
    before: dict[str, Any], usage: dict[str, Any], after: dict[str, Any], spaced: bool, ascii_only: bool
) -> None:
    after = {key: value for key, value in after.items() if key not in before}
    usage.pop("thrift", None)
    data = dump({**before, "usage": usage, **after}, spaced, ascii_only)
    amended = splice(data, ADD)
    assert amended is not None
    expected = {**before, "usage": {**usage, "thrift": {"steps": 3}}, **after}
    assert json.loads(amended.decode("utf-8", "surrogatepass")) == expected
    assert amended.replace(ADD, b"", 1).replace(b",}", b"}", 1) in (data, data.replace(b",}", b"}", 1))


@given(others, st.booleans())
def test_no_usage_no_change(answer: dict[str, Any], spaced: bool) -> None:
    assert splice(dump(answer, spaced, True), ADD) is None
    assert splice(dump({**answer, "usage": None}, spaced, True), ADD) is None


@given(others, usages, others)
def test_inside_response(answer: dict[str, Any], usage: dict[str, Any], outer: dict[str, Any]) -> None:
    usage.pop("thrift", None)
    event = {**outer, "response": {**answer, "usage": usage}, "sequence_number": 3}
    amended = splice(dump(event, False, True), ADD, depth=2)
    assert amended is not None
    assert json.loads(amended)["response"]["usage"] == {**usage, "thrift": {"steps": 3}}


@given(st.lists(others, max_size=3), usages)
def test_events(answers: list[dict[str, Any]], usage: dict[str, Any]) -> None:
    usage.pop("thrift", None)
    events = [b"data: " + dump(answer, False, True) + b"\n\n" for answer in answers]
    last = b"data: " + dump({"choices": [], "usage": usage}, False, True) + b"\n\n"
    amended = splice_events(b"".join([*events, last, b"data: [DONE]\n\n"]), ADD)
    *same, changed, done, rest = amended.split(b"\n\n")
    assert [line + b"\n\n" for line in same] == events
    assert json.loads(changed[6:])["usage"] == {**usage, "thrift": {"steps": 3}}
    assert (done, rest) == (b"data: [DONE]", b"")


@pytest.mark.parametrize("usage", [b"{}", b"{ }", b'{"a":1}', b'{"a":{"b":[]}}'])
def test_commas(usage: bytes) -> None:
    amended = splice(b'{"usage":' + usage + b"}", ADD)
    assert amended is not None
    assert "thrift" in json.loads(amended)["usage"]


def test_member_is_the_contract() -> None:
    report = Report(steps=31, completion_tokens=80, prompt_tokens=512, drafted=960, accepted=49)
    assert json.loads(b"{" + member(report, "token_recycling") + b"}")["thrift"] == {
        "exact": True,
        "steps": 31,
        "tokens_per_step": 2.58,
        "speculation": {"method": "token_recycling", "drafted": 960, "accepted": 49},
        "kv": {"method": None, "tokens_seen": 512, "tokens_kept": 512},
        "vision": {"method": None, "tokens_seen": 0, "tokens_kept": 0},
    }


def test_kv_is_what_the_engine_counted() -> None:
    report = Report(steps=3, completion_tokens=3, prompt_tokens=512, kv_method="snapkv")
    untouched = json.loads(b"{" + member(report, None) + b"}")["thrift"]
    assert untouched["exact"] is True
    assert untouched["kv"] == {"method": "snapkv", "tokens_seen": 512, "tokens_kept": 512}
    report.count_kv(seen=515, kept=515, dropped=0, freed=0)
    assert report.exact is True
    report.count_kv(seen=600, kept=80, dropped=520, freed=960)  # the second choice
    dropped = json.loads(b"{" + member(report, None) + b"}")["thrift"]
    assert dropped["exact"] is False
    assert dropped["kv"] == {"method": "snapkv", "tokens_seen": 1115, "tokens_kept": 595}


def test_thousands_of_usage_keys_cost_one_pass() -> None:
    """A client's tool schema is echoed by the Responses API, with whatever keys it has."""
    tools = [{"parameters": {"properties": [{"usage": {"type": "string"}}] * 20_000}}]
    begun = process_time()
    assert splice(dump({"response": {"tools": tools, "usage": None}}, False, True), ADD, depth=2) is None
    amended = splice(dump({"response": {"usage": {"a": 1}, "tools": tools}}, False, True), ADD, depth=2)
    assert process_time() - begun < 3
    assert amended is not None and json.loads(amended)["response"]["usage"] == {"a": 1, "thrift": {"steps": 3}}
