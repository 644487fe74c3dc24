"""The `thrift` object: what it resolves to and how it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.kv_cache.profiles import PROFILES, Profile
from thriftree.plugins.kv_cache.request import Terms
from thriftree.plugins.vision.request import Terms as VisionTerms
from thriftree.server.contract import Capabilities, resolve
from thriftree.server.errors import ContractError
from thriftree.server.methods import capabilities

ON = capabilities(True, "auto", 16)
OFF = capabilities(False, "auto", 16)
AUTO = {"method": "auto", "max_nodes": 16}
KV = Terms(None, {"razor_observed": "no heads"}, method="observed", keep=0.25)
WITH_KV = capabilities(True, "auto", 16, KV)
OBSERVED = {"method": "observed", "sinks": 4, "recent": 32, "defer": True, "per_head": False}
CAPPED = {**OBSERVED, "budget": 100}


@pytest.mark.parametrize(
    ("thrift", "speculation"),
    [
        (None, AUTO),
        ("off", "off"),
        ("exact", AUTO),
        ("balanced", AUTO),
        ("max", AUTO),
        ({}, AUTO),
        ({"speculation": "auto"}, AUTO),
        ({"speculation": "off"}, "off"),
        ({"speculation": {}}, AUTO),
        ({"speculation": {"method": "suffix"}}, {"method": "suffix", "max_nodes": 16}),
        ({"speculation": {"method": "token_recycling", "max_nodes": 4}}, {"method": "token_recycling", "max_nodes": 4}),
        ({"kv": "off", "vision": "off"}, AUTO),
    ],
)
def test_resolves(thrift: Any, speculation: Any) -> None:
    assert resolve(thrift, ON) == {"speculation": speculation, "kv": "off", "vision": "off"}


@pytest.mark.parametrize(
    ("thrift", "kv"),
    [
        (None, "off"),
        ("off", "off"),
        ("exact", "off"),
        ("balanced", "off"),
        ({}, "off"),
        ({"kv": "off"}, "off"),
        ({"kv": {}}, {**OBSERVED, "keep": 0.25}),
        ({"kv": {"budget": 64}}, {**OBSERVED, "budget": 64}),
        ({"kv": {"method": "knorm", "keep": 1}}, {**OBSERVED, "method": "knorm", "keep": 1.0, "defer": False}),
    ],
)
def test_resolves_kv(thrift: Any, kv: Any) -> None:
    resolved = resolve(thrift, WITH_KV)
    assert resolved["kv"] == kv
    assert resolved["speculation"] == ("off" if thrift == "off" else AUTO)


@pytest.mark.parametrize(
    ("thrift", "kv"),
    [
        (None, CAPPED),
        ({"speculation": "off"}, CAPPED),
        ("max", CAPPED),  # may change answers
        ("exact", "off"),  # may not, so it is held to the cap by its length
        ("off", "off"),
        ({"kv": "off"}, "off"),
        ({"kv": {"budget": 64}}, {**OBSERVED, "budget": 64}),
    ],
)
def test_under_a_cap_whoever_does_not_ask_gets_the_default_from_the_cap_on(thrift: Any, kv: Any) -> None:
    assert resolve(thrift, capabilities(True, "auto", 16, replace(KV, max_tokens=100)))["kv"] == kv


def test_profiles_do_what_their_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "balanced", Profile("measured", {"method": "knorm", "keep": 0.5}))
    half = {**OBSERVED, "method": "knorm", "keep": 0.5, "defer": False}
    assert resolve("balanced", WITH_KV)["kv"] == half
    assert resolve(None, WITH_KV)["kv"] == resolve("max", WITH_KV)["kv"] == "off"
    assert resolve(None, capabilities(True, "auto", 16, replace(KV, profile="balanced")))["kv"] == half
    assert resolve("balanced", ON)["kv"] == "off"  # it promises quality, not savings
    without = replace(KV, missing={"knorm": "not here"})
    assert resolve("balanced", capabilities(True, "auto", 16, without))["kv"] == "off"


@pytest.mark.parametrize("profile", ["exact", "balanced", "max"])
def test_profiles_where_there_are_images_and_no_trees(profile: str) -> None:
    """On a GPU: they promise quality, and prune what they prune."""
    images = replace(OFF, vision=VisionTerms(reason=None))
    pruned = resolve(profile, images)
    assert pruned["speculation"] == "off" and (pruned["vision"] == "off") == (profile == "exact")
    with pytest.raises(ContractError, match="or a GPU"):
        resolve({"speculation": "auto"}, images)


@pytest.mark.parametrize(
    ("thrift", "param", "code"),
    [
        ("fast", "thrift", "thrift_invalid"),
        (3, "thrift", "thrift_invalid"),
        ([], "thrift", "thrift_invalid"),
        (True, "thrift", "thrift_invalid"),
        ({"speed": 1}, "thrift.speed", "thrift_invalid"),
        ({"speculation": None}, "thrift.speculation", "thrift_invalid"),
        ({"speculation": "on"}, "thrift.speculation", "thrift_invalid"),
        ({"speculation": 8}, "thrift.speculation", "thrift_invalid"),
        ({"speculation": {"method": "eagle9"}}, "thrift.speculation.method", "thrift_invalid"),
        ({"speculation": {"method": 1}}, "thrift.speculation.method", "thrift_invalid"),
        ({"speculation": {"method": ["auto"]}}, "thrift.speculation.method", "thrift_invalid"),
        ({"speculation": {"max_nodes": 0}}, "thrift.speculation.max_nodes", "thrift_invalid"),
        ({"speculation": {"max_nodes": 17}}, "thrift.speculation.max_nodes", "thrift_forbidden"),
        ({"speculation": {"max_nodes": "8"}}, "thrift.speculation.max_nodes", "thrift_invalid"),
        ({"speculation": {"max_nodes": True}}, "thrift.speculation.max_nodes", "thrift_invalid"),
        ({"speculation": {"depth_of_field": 1}}, "thrift.speculation.depth_of_field", "thrift_invalid"),
        ({"kv": {"method": "snapkv", "budget": 1024}}, "thrift.kv", "thrift_unsupported"),
        ({"kv": None}, "thrift.kv", "thrift_invalid"),
        ({"kv": "auto"}, "thrift.kv", "thrift_invalid"),
        ({"vision": {"method": "divprune"}}, "thrift.vision", "thrift_unsupported"),
    ],
)
def test_refuses(thrift: Any, param: str, code: str) -> None:
    with pytest.raises(ContractError) as caught:
        resolve(thrift, ON)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize(
    ("kv", "param", "code"),
    [
        ({"budget": 51}, "thrift.kv.budget", "thrift_invalid"),
        ({"budget": 101}, "thrift.kv.budget", "thrift_forbidden"),
        ({"budget": 64, "keep": 0.5}, "thrift.kv.keep", "thrift_invalid"),
        ({"keep": float("nan")}, "thrift.kv.keep", "thrift_invalid"),
        ({"method": "snapkw"}, "thrift.kv.method", "thrift_invalid"),
        ({"method": "razor_observed"}, "thrift.kv.method", "thrift_unsupported"),
        ({"method": "snapkv", "kernel": 0}, "thrift.kv.kernel", "thrift_invalid"),
        ({"per_head": 1}, "thrift.kv.per_head", "thrift_invalid"),
        ("on", "thrift.kv", "thrift_invalid"),
    ],
)
def test_refuses_kv(kv: Any, param: str, code: str) -> None:
    with pytest.raises(ContractError) as caught:
        resolve({"kv": kv}, capabilities(True, "auto", 16, replace(KV, max_tokens=100)))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert caught.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize("thrift", ["exact", {"speculation": "auto"}, {"speculation": {"method": "suffix"}}])
def test_a_server_without_speculation_says_so(thrift: Any) -> None:
    with pytest.raises(ContractError) as caught:
        resolve(thrift, OFF)
    assert caught.value.code == "thrift_unsupported"
    assert "--thrift off" in caught.value.message


@pytest.mark.parametrize("thrift", [None, "off", {}, {"speculation": "off"}])
def test_a_server_without_speculation_serves_the_rest(thrift: Any) -> None:
    assert resolve(thrift, OFF) == {"speculation": "off", "kv": "off", "vision": "off"}


def test_a_server_without_speculation_can_compress() -> None:
    can = capabilities(False, "auto", 16, KV)
    assert resolve({"kv": {"budget": 64}}, can) == {
        "speculation": "off",
        "kv": {**OBSERVED, "budget": 64},
        "vision": "off",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["speculation", "kv", "vision", "method", "budget", "keep", "x"]), inner)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from([ON, OFF, WITH_KV]))
def test_anything_is_resolved_or_refused(thrift: Any, server: Capabilities) -> None:
    try:
        assert set(resolve(thrift, server)) == {"speculation", "kv", "vision"}
    except ContractError as error:
        assert error.param is not None and error.param.startswith("thrift")
