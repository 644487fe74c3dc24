"""The `thrift` object: what it resolves to and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.contract import resolve
from thriftree.server.errors import ContractError
from thriftree.server.methods import capabilities

ON = capabilities(True, "auto", 16)
OFF = capabilities(False, "auto", 16)
AUTO = {"method": "auto", "max_nodes": 16}


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
    assert resolve(thrift, ON) == {"speculation": speculation}


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
        ({"kv": "auto"}, "thrift.kv", "thrift_invalid"),
        ({"vision": {"method": "divprune"}}, "thrift.vision", "thrift_unsupported"),
    ],
)
def test_refuses(thrift: Any, param: str, code: str) -> None:
    with pytest.raises(ContractError) as caught:
        resolve(thrift, ON)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize("thrift", ["exact", {"speculation": "auto"}, {"speculation": {"method": "suffix"}}])
def test_a_server_without_speculation_says_so(thrift: Any) -> None:
    with pytest.raises(ContractError) as caught:
        resolve(thrift, OFF)
    assert caught.value.code == "thrift_unsupported"
    assert "--thrift off" in caught.value.message


@pytest.mark.parametrize("thrift", [None, "off", {}, {"speculation": "off"}])
def test_a_server_without_speculation_serves_the_rest(thrift: Any) -> None:
    assert resolve(thrift, OFF) == {"speculation": "off"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["speculation", "kv", "method", "x"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_anything_is_resolved_or_refused(thrift: Any) -> None:
    try:
        assert set(resolve(thrift, ON)) == {"speculation"}
    except ContractError as error:
        assert error.param is not None and error.param.startswith("thrift")
