"""`thrift.kv` through the whole gateway: contract to the engine, figures to the client, counters, the server's cap."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.asgi import Answer, FakeEngine, call
from tests.server.conftest import Gateway
from tests.server.layers import BEARER, keyring, stack
from thriftree.plugins.engine.contract_var import CURRENT
from thriftree.plugins.kv_cache.request import Terms, budget, checked
from thriftree.server.commands import methods_command
from thriftree.server.keys.limits import caps_of
from thriftree.server.principal import Caps
from thriftree.server.status.counts import totals

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ANSWER = b'{"choices":[],"usage":{"total_tokens":17}}'
EVENT = b'data: {"choices":[],"usage":{"total_tokens":17}}\n\n'
TERMS = Terms(None, {"razor_observed": "no head file"}, method="observed")
KNORM = {"method": "knorm", "budget": 64, "sinks": 4, "recent": 32, "defer": False, "per_head": False}


class Compressing(FakeEngine):
    """Reports a cache for each choice, as the engine client does."""

    caches: tuple[tuple[int, int, int, int], ...] = ((300, 64, 236, 420),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        contract = CURRENT.get()
        if contract is not None and contract.thrift["kv"] != "off":
            for cache in self.caches:
                contract.report.count_kv(*cache)
        await super().__call__(scope, receive, send)


async def ask(
    gateway: Gateway, body: Any, terms: Terms = TERMS, path: str = CHAT, **more: Any
) -> tuple[Answer, Any, Any]:
    engine = Compressing([more.pop("answer", ANSWER)], more.pop("kind", "application/json"))
    engine.caches = more.pop("caches", Compressing.caches)
    app, state = gateway(engine, **more)
    state.capabilities = replace(state.capabilities, kv=terms)
    return await call(app, "POST", path, body), engine, state


async def test_request_in_usage_and_counters_out(gateway: Gateway) -> None:
    body = {"thrift": {"kv": {"method": "knorm", "budget": 64}}}
    answer, engine, state = await ask(gateway, body)
    assert engine.contracts[0].thrift == {
        "speculation": {"method": "auto", "max_nodes": 16},
        "kv": KNORM,
        "vision": "off",
    }
    thrift = answer.json["usage"]["thrift"]
    assert thrift["exact"] is False
    assert thrift["kv"] == {"method": "knorm", "tokens_seen": 300, "tokens_kept": 64}
    text = state.metrics.render().decode()
    assert 'thriftree_kv_tokens_dropped_total{method="knorm"} 236.0' in text
    assert 'thriftree_kv_blocks_freed_total{method="knorm"} 420.0' in text
    assert totals(state.metrics)["kv_dropped"] == 236


async def test_choices_are_summed_and_streams_say_the_same(gateway: Gateway) -> None:
    body = {"n": 2, "stream": True, "thrift": {"kv": {"method": "knorm", "budget": 64}}}
    caches = ((300, 64, 236, 420), (310, 70, 240, 430))
    answer, _, _ = await ask(gateway, body, answer=EVENT, kind="text/event-stream", caches=caches)
    thrift = json.loads(answer.chunks[0][6:])["usage"]["thrift"]
    assert thrift["kv"] == {"method": "knorm", "tokens_seen": 610, "tokens_kept": 134}


async def test_a_short_prompt_stays_exact_and_names_its_method(gateway: Gateway) -> None:
    answer, _, state = await ask(gateway, {"thrift": {"kv": {"budget": 64}}}, caches=((17, 17, 0, 0),))
    thrift = answer.json["usage"]["thrift"]
    assert thrift["exact"] is True
    assert thrift["kv"] == {"method": "observed", "tokens_seen": 17, "tokens_kept": 17}
    assert 'thriftree_kv_tokens_dropped_total{method="observed"} 0.0' in state.metrics.render().decode()


async def test_off_counts_nothing(gateway: Gateway) -> None:
    answer, _, state = await ask(gateway, {"thrift": "exact"})
    assert answer.json["usage"]["thrift"]["kv"] == {"method": None, "tokens_seen": 7, "tokens_kept": 7}
    assert "thriftree_kv_tokens_dropped_total{" not in state.metrics.render().decode()


async def test_where_nothing_is_generated_it_is_ignored(gateway: Gateway) -> None:
    answer, engine, _ = await ask(
        gateway, {"input": "a", "thrift": {"kv": "nonsense"}}, path="/v1/embeddings", caches=()
    )
    assert answer.status == 200 and engine.seen


async def test_refusals_name_the_field_and_reach_no_engine(gateway: Gateway) -> None:
    answer, engine, _ = await ask(gateway, {"thrift": {"kv": {"budget": 51}}})
    error = answer.json["error"]
    assert (answer.status, error["param"], error["code"]) == (400, "thrift.kv.budget", "thrift_invalid")
    assert "from 52 (4 sinks, 32 recent and a block of 16)" in error["message"] and engine.seen == []


async def test_a_key_without_kv_methods(gateway: Gateway) -> None:
    app = stack(FakeEngine([ANSWER]), keyring(Caps(methods=("token_recycling",))))
    answer = await call(app, "POST", CHAT, {"thrift": {"kv": {"method": "knorm", "budget": 64}}}, headers=BEARER)
    assert (answer.status, answer.json["error"]["code"]) == (400, "thrift_forbidden")
    assert (await call(app, "POST", CHAT, {"thrift": {"kv": "off"}}, headers=BEARER)).status == 200


def test_keys_may_be_limited_to_methods_of_any_family() -> None:
    assert caps_of({"methods": ["suffix", "snapkv"]}).methods == ("suffix", "snapkv")
    with pytest.raises(ValueError, match="methods: unknown name 'snapkw'"):
        caps_of({"methods": ["snapkw"]})


# ---- under a server's cap

CAPPED = replace(TERMS, max_tokens=100)
OFF: dict[str, Any] = {"thrift": "off"}
IDS = list(range(90))


@pytest.mark.parametrize(
    ("path", "body", "added"),
    [
        (TEXT, {"prompt": IDS}, None),  # sixteen tokens by default: too many
        (TEXT, {"prompt": IDS, "max_tokens": 10}, {}),
        (TEXT, {"prompt": IDS, "max_tokens": 11}, None),
        (TEXT, {"prompt": IDS[:84]}, {}),
        (TEXT, {"prompt": [IDS, IDS, IDS], "max_tokens": 10}, {}),  # each has a cache of its own
        (TEXT, {"prompt": [IDS[:1], IDS * 2], "max_tokens": 1}, None),
        (TEXT, {"prompt": IDS * 2, "max_tokens": 1}, None),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 40}]}, {"max_completion_tokens": 85}),  # estimated: 15
        (CHAT, {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 85}, {}),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 86}, None),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 4000}]}, None),
    ],
)
async def test_off_is_held_to_the_cap_by_its_length(
    gateway: Gateway, path: str, body: dict[str, Any], added: dict[str, int] | None
) -> None:
    answer, engine, _ = await ask(gateway, body | OFF, CAPPED, path)
    if added is None:
        error = answer.json["error"]
        assert (answer.status, error["param"], error["code"]) == (400, "thrift.kv", "thrift_forbidden")
        assert "--kv-max-tokens" in error["message"] and engine.seen == []
    else:
        assert answer.status == 200
        assert json.loads(engine.seen[0]) == body | OFF | added


async def test_a_method_that_only_reads_less_is_held_to_it_too(gateway: Gateway) -> None:
    reading = {"thrift": {"kv": {"method": "recycled_attention", "budget": 64}}}
    answer, engine, _ = await ask(gateway, {"prompt": IDS * 2, "max_tokens": 1} | reading, CAPPED, TEXT)
    assert (answer.status, answer.json["error"]["param"], engine.seen) == (400, "thrift.kv", [])
    answer, engine, _ = await ask(gateway, {"prompt": IDS, "max_tokens": 1} | reading, CAPPED, TEXT)
    assert answer.status == 200 and engine.contracts[0].thrift["kv"]["method"] == "recycled_attention"


@pytest.mark.parametrize("value", ["512", 512.0, True])
async def test_no_other_type_slips_through(gateway: Gateway, value: Any) -> None:
    answer, engine, _ = await ask(gateway, {"prompt": IDS, "max_tokens": value} | OFF, CAPPED, TEXT)
    assert (answer.status, answer.json["error"]["param"], engine.seen) == (400, "max_tokens", [])


async def test_whoever_does_not_ask_is_compressed_from_the_cap_on(gateway: Gateway) -> None:
    answer, engine, _ = await ask(gateway, {"prompt": IDS * 9}, CAPPED, TEXT)
    assert answer.status == 200
    assert engine.contracts[0].thrift["kv"]["budget"] == 100
    assert engine.contracts[0].thrift["kv"]["method"] == "observed"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"thrift"', b"{"])
async def test_what_is_no_request_is_vllms_business(gateway: Gateway, body: bytes) -> None:
    cannot = replace(CAPPED, reason="a sliding window")  # so everything stays whole
    answer, engine, _ = await ask(gateway, body, cannot, TEXT)
    assert answer.status == 200 and engine.seen == [body]


async def test_a_cap_on_a_model_that_cannot_be_compressed_says_so(gateway: Gateway) -> None:
    answer, _, _ = await ask(gateway, {"prompt": IDS * 2}, replace(CAPPED, reason="a sliding window"), TEXT)
    assert answer.status == 400 and answer.json["error"]["message"].endswith("(--kv-max-tokens): a sliding window")


# ---- under a key's cap


@pytest.mark.parametrize("terms", [TERMS, replace(TERMS, max_tokens=1000)], ids=["no other", "and the server's"])
@pytest.mark.parametrize(
    ("thrift", "kept"),
    [
        ({}, {"budget": 100}),
        ({"kv": {"budget": 64}}, {"budget": 64}),
        ({"kv": {"budget": 101}}, "thrift.kv.budget"),
        ({"kv": {"keep": 0.5}}, {"keep": 0.5, "max_budget": 100}),
        ({"kv": {"keep": 0.5, "max_budget": 4000}}, {"keep": 0.5, "max_budget": 100}),
        ({"kv": {"keep": 0.5, "max_budget": 60}}, {"keep": 0.5, "max_budget": 60}),
        ({"kv": {"recent": 900}}, "thrift.kv.recent"),
        ({"kv": "off"}, "thrift.kv"),
        ("exact", "thrift.kv"),
    ],
    ids=str,
)
async def test_a_key_keeps_no_more_than_it_may(terms: Terms, thrift: Any, kept: Any) -> None:
    engine = Compressing([ANSWER], "application/json")
    body = {"prompt": IDS * 5, "max_tokens": 8, "thrift": thrift}
    answer = await call(stack(engine, keyring(Caps(max_kv_budget=100)), kv=terms), "POST", TEXT, body, headers=BEARER)
    if isinstance(kept, str):
        assert (answer.status, answer.json["error"]["param"]) == (400, kept)
        assert answer.json["error"]["code"] == "thrift_forbidden" and engine.seen == []
        assert "this key's cap of 100 tokens" in answer.json["error"]["message"]
    else:
        kv = engine.contracts[0].thrift["kv"]
        assert answer.status == 200 and {name: kv[name] for name in kv if name in (*kept, "budget", "keep")} == kept
        assert checked(kv, terms) == kv and budget(kv, len(IDS) * 5, terms) <= 100  # the engine knows the server's


async def test_a_key_with_a_cap_and_a_short_request() -> None:
    app = stack(Compressing([ANSWER], "application/json"), keyring(Caps(max_kv_budget=100)), kv=TERMS)
    body = {"prompt": IDS, "max_tokens": 10, "thrift": "off"}
    assert (await call(app, "POST", TEXT, body, headers=BEARER)).status == 200
    assert (await call(app, "POST", TEXT, body | {"max_tokens": 11}, headers=BEARER)).status == 400


# ---- the method table


async def test_method_table(gateway: Gateway) -> None:
    app, state = gateway(None)
    state.capabilities = replace(state.capabilities, kv=replace(TERMS, max_tokens=1000))
    listed = (await call(app, "GET", "/v1/thrift/methods")).json["methods"]
    rows = {row["name"]: row for row in listed if row["family"] == "kv"}
    assert [row["name"] for row in rows.values() if row["default"]] == ["observed"]
    razor, snap = rows["razor_observed"], rows["snapkv"]
    assert (razor["available"], razor["reason"], razor["family"]) == (False, "no head file", "kv")
    assert snap["available"] and snap["exact"] is False and snap["reason"] is None
    assert {"budget", "keep", "sinks", "recent", "defer", "per_head", "kernel"} <= set(snap["parameters"]["properties"])
    assert snap["parameters"]["properties"]["budget"]["maximum"] == 1000


def test_the_command_says_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert methods_command(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [row["name"] for row in rows if row["default"]] == ["auto", "razor_observed", "divprune"]
    monkeypatch.setenv("COLUMNS", "150")
    assert methods_command([]) == 0
    shown = capsys.readouterr().out
    assert all(row["name"] in shown for row in rows)
    assert (
        "those of kv budget, keep, max_budget, sinks, recent, defer, per_head" in shown
        and "balanced = exact, and KV" in shown
    )
