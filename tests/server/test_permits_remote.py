"""Profiles and methods of a key in front of another server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.asgi import FakeEngine, call
from tests.server.layers import BEARER, keyring, stack
from thriftree.server.contract import KEYS
from thriftree.server.errors import ContractError
from thriftree.server.permits_remote import check_thrift
from thriftree.server.principal import Caps

SUFFIX = {"speculation": {"method": "suffix"}, "kv": "off", "vision": "off"}
METHODS, EXACT, OFF = Caps(methods=("suffix", "snapkv")), Caps(profiles=("off", "exact")), Caps(profiles=("off",))


@pytest.mark.parametrize(
    ("caps", "thrift", "sent"),
    [
        (METHODS, None, SUFFIX),
        (METHODS, "exact", SUFFIX),
        (METHODS, "off", "off"),
        (METHODS, {}, SUFFIX),
        (METHODS, {"kv": {"method": "snapkv"}}, {**SUFFIX, "kv": {"method": "snapkv"}}),
        (METHODS, SUFFIX, SUFFIX),
        (Caps(methods=("snapkv", "suffix")), None, SUFFIX),  # the first one of speculation
        (Caps(methods=("snapkv",)), None, {"speculation": "off", "kv": "off", "vision": "off"}),
        (
            Caps(methods=("snapkv",)),
            {"kv": {"method": "snapkv", "keep": 0.5}},
            {"speculation": "off", "kv": {"method": "snapkv", "keep": 0.5}, "vision": "off"},
        ),
        (EXACT, None, "exact"),
        (EXACT, "off", "off"),
        (EXACT, {"speculation": "off"}, {"speculation": "off", "kv": "off", "vision": "off"}),
        (EXACT, {}, {"speculation": "auto", "kv": "off", "vision": "off"}),
        (OFF, None, "off"),
        (OFF, {}, {"speculation": "off", "kv": "off", "vision": "off"}),
        (Caps(methods=("suffix",), profiles=("off",)), None, {"speculation": "off", "kv": "off", "vision": "off"}),
    ],
)
def test_what_is_sent_on(caps: Caps, thrift: Any, sent: Any) -> None:
    body = {} if thrift is None else {"thrift": thrift}
    assert {**body, **check_thrift(body, caps)}["thrift"] == sent


@pytest.mark.parametrize(
    ("caps", "thrift", "param"),
    [
        (METHODS, {"speculation": "auto"}, "thrift.speculation"),
        (METHODS, {"speculation": {"method": "eagle"}}, "thrift.speculation"),
        (METHODS, {"speculation": {}}, "thrift.speculation"),
        (METHODS, {"vision": {"method": "divprune"}}, "thrift.vision"),
        (METHODS, {"kv": ["snapkv"]}, "thrift.kv"),
        (METHODS, {"kv": {"method": "h2o", "budget": 64}}, "thrift.kv"),
        (METHODS, {"kv": {"budget": 64}}, "thrift.kv"),  # the engine's default may be any
        (EXACT, "max", "thrift"),
        (EXACT, {"kv": {"method": "snapkv"}}, "thrift.kv"),
        (OFF, "exact", "thrift"),
        (OFF, {"speculation": "auto"}, "thrift.speculation"),
    ],
)
def test_what_is_refused(caps: Caps, thrift: Any, param: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_thrift({"thrift": thrift}, caps)
    assert (caught.value.code, caught.value.param) == ("thrift_forbidden", param)


_NAMES = st.sampled_from(["suffix", "snapkv", "eagle", "auto", "off"])
_FAMILY = st.one_of(_NAMES, st.builds(lambda name: {"method": name}, _NAMES), st.just({}), st.none())


@given(st.one_of(st.none(), st.sampled_from(["off", "exact", "max"]), st.dictionaries(st.sampled_from(KEYS), _FAMILY)))
def test_no_other_method_gets_through(thrift: Any) -> None:
    try:
        sent = {"thrift": thrift, **check_thrift({"thrift": thrift}, METHODS)}["thrift"]
    except ContractError:
        return
    if sent == "off":
        return
    for family in KEYS:
        asked = sent[family]
        name = asked["method"] if isinstance(asked, dict) else asked
        assert name in ("off", "suffix", "snapkv")


async def test_the_layer_in_front_of_another_server() -> None:
    engine = FakeEngine([b"{}"])
    app = stack(engine, keyring(Caps(methods=("suffix",), max_tokens=9)), remote=True)
    await call(app, "POST", "/v1/chat/completions", b'{"model": "a"}', headers=BEARER)
    assert json.loads(engine.seen[0]) == {"model": "a", "thrift": SUFFIX, "max_completion_tokens": 9}
    answer = await call(app, "POST", "/v1/chat/completions", {"thrift": {"kv": {"method": "h2o"}}}, headers=BEARER)
    assert (answer.status, answer.json["error"]["param"]) == (400, "thrift.kv")
    assert (await call(app, "POST", "/v1/embeddings", b"{", headers=BEARER)).status == 200
