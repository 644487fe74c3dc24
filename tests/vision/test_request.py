"""`thrift.vision`: complete or refused, and its own answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins import schema
from thriftree.plugins.refused import Refused
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.profiles import PROFILES, Profile
from thriftree.plugins.vision.request import NOT_HERE, Terms, canonical, checked, default, named, parameters

TERMS = Terms(None, {"hiprune": "no attention"}, method="random")
CAPPED = replace(TERMS, max_keep=0.5)


@pytest.mark.parametrize(
    ("asked", "terms", "complete"),
    [
        ("off", TERMS, "off"),
        ("off", Terms(), "off"),
        ({}, TERMS, {"method": "random", "keep": 0.25}),
        ({"keep": 1}, TERMS, {"method": "random", "keep": 1.0}),
        ({"keep_tokens": 64}, TERMS, {"method": "random", "keep_tokens": 64}),
        ({}, replace(CAPPED, keep=0.75), {"method": "random", "keep": 0.5}),
        ({"method": "stride", "keep": 0.5}, CAPPED, {"method": "stride", "keep": 0.5}),
    ],
)
def test_complete(asked: Any, terms: Terms, complete: Any) -> None:
    assert checked(asked, terms) == complete
    assert checked(complete, terms) == complete


@pytest.mark.parametrize(
    ("asked", "terms", "field", "code"),
    [
        (None, TERMS, "vision", "thrift_invalid"),
        ("auto", TERMS, "vision", "thrift_invalid"),
        ([], TERMS, "vision", "thrift_invalid"),
        ({}, Terms(), "vision", "thrift_unsupported"),
        ({"method": "nonsense"}, TERMS, "vision.method", "thrift_invalid"),
        ({"method": ["random"]}, TERMS, "vision.method", "thrift_invalid"),
        ({"method": "hiprune"}, TERMS, "vision.method", "thrift_unsupported"),
        ({"keep": 0}, TERMS, "vision.keep", "thrift_invalid"),
        ({"keep": 1.5}, TERMS, "vision.keep", "thrift_invalid"),
        ({"keep": True}, TERMS, "vision.keep", "thrift_invalid"),
        ({"keep": float("nan")}, TERMS, "vision.keep", "thrift_invalid"),
        ({"keep": "0.5"}, TERMS, "vision.keep", "thrift_invalid"),
        ({"keep": 0.75}, CAPPED, "vision.keep", "thrift_forbidden"),
        ("off", CAPPED, "vision", "thrift_forbidden"),
        ({"keep_tokens": 0}, TERMS, "vision.keep_tokens", "thrift_invalid"),
        ({"keep_tokens": 1.0}, TERMS, "vision.keep_tokens", "thrift_invalid"),
        ({"keep_tokens": True}, TERMS, "vision.keep_tokens", "thrift_invalid"),
        ({"keep_tokens": 1 << 30}, TERMS, "vision.keep_tokens", "thrift_invalid"),
        ({"keep": 0.5, "keep_tokens": 5}, TERMS, "vision.keep_tokens", "thrift_invalid"),
        ({"sauce": 1}, TERMS, "vision.sauce", "thrift_invalid"),
    ],
)
def test_refused(asked: Any, terms: Terms, field: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        checked(asked, terms)
    assert (caught.value.field, caught.value.code) == (field, code)
    assert str(caught.value).startswith(f"{field}: ")


def test_without_pruning_the_reason_is_said() -> None:
    with pytest.raises(Refused, match="--vision-pruning off"):
        checked({}, Terms())
    assert default(Terms()) == "off" and NOT_HERE in str(Terms().reason)


def test_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "max", Profile("a test", {"method": "stride", "keep": 0.75}))
    assert named("max", TERMS) == {"method": "stride", "keep": 0.75}
    assert named("max", CAPPED) == {"method": "stride", "keep": 0.5}
    assert named("max", replace(TERMS, missing={"stride": "gone"})) == "off"
    assert named("exact", TERMS) == named("off", TERMS) == "off"
    assert default(replace(TERMS, profile="max")) == {"method": "stride", "keep": 0.75}
    # A server that keeps no image whole prunes whatever the profile.
    assert named("off", CAPPED) == default(CAPPED) == {"method": "random", "keep": 0.5}


@pytest.mark.parametrize("name", registry.names())
def test_every_method_takes_its_defaults_and_nothing_else(name: str) -> None:
    described = registry.describe(name)
    complete = checked({"method": name}, TERMS if name != "hiprune" else replace(TERMS, missing={}))
    assert complete == checked(complete, replace(TERMS, missing={}))
    shown = parameters(described, TERMS)["properties"]
    assert set(complete) | {"keep_tokens"} == {"method", *shown}
    assert shown["keep"]["maximum"] == 1.0
    for option, value in complete.items():
        if option in described.parameters["properties"]:
            made = schema.built(name, type(registry.configure(name)), {option: value})
            assert getattr(made, option) == value


def test_equal_settings_are_one_text() -> None:
    assert canonical({"keep": 0.5, "method": "random"}) == canonical({"method": "random", "keep": 0.5})
    assert canonical({"keep": 0.5, "method": "random"}) != canonical({"keep": 0.25, "method": "random"})


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([])
_OBJECTS = st.dictionaries(st.sampled_from(["method", "keep", "keep_tokens", "alpha", "x"]), _VALUES)


@given(_VALUES | _OBJECTS, st.sampled_from([TERMS, CAPPED, Terms()]))
def test_anything_is_complete_or_refused(asked: Any, terms: Terms) -> None:
    try:
        complete = checked(asked, terms)
    except Refused as error:
        assert error.field.startswith("vision")
    else:
        assert checked(complete, terms) == complete
