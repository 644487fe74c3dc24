"""`thrift.kv`: what is taken, what it comes to, and what is refused; by the gateway and by a stock server alike."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.engine.drafting import check_contract
from thriftree.plugins.engine.kv.plan import Tier, plan_of
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.request import NOT_HERE, Refused, Terms, budget, checked, default, named, parameters
from thriftree.server.contract import resolve
from thriftree.server.errors import ContractError
from thriftree.server.methods import capabilities

TERMS = Terms(None, {"razor_observed": "no head file"}, method="observed", layers=6, max_tokens=4096)
SHARED = {"sinks": 4, "recent": 32, "defer": True, "per_head": False}
NONE, TURNED = {"sinks": 0, "recent": 1}, {"defer": False, "per_head": True}


@pytest.mark.parametrize(
    ("asked", "complete"),
    [
        ("off", "off"),
        ({}, {"method": "observed", "keep": 0.5, **SHARED}),
        ({"budget": 52}, {"method": "observed", "budget": 52, **SHARED}),  # the least: 4 + 32 + 16
        ({"budget": 4096}, {"method": "observed", "budget": 4096, **SHARED}),
        ({"budget": 17, "sinks": 0, "recent": 1}, {"method": "observed", "budget": 17, **SHARED, **NONE}),
        ({"keep": 1}, {"method": "observed", "keep": 1.0, **SHARED}),
        ({"max_budget": 99}, {"method": "observed", "keep": 0.5, "max_budget": 99, **SHARED}),
        ({"keep": 1e-9}, {"method": "observed", "keep": 1e-9, **SHARED}),
        ({"method": "knorm", "budget": 64}, {"method": "knorm", "budget": 64, **SHARED, "defer": False}),
        ({"method": "knorm", "defer": True}, {"method": "knorm", "keep": 0.5, **SHARED}),
        ({"per_head": True, "defer": False}, {"method": "observed", "keep": 0.5, **SHARED, **TURNED}),
        ({"method": "snapkv", "kernel": 7}, {"method": "snapkv", "keep": 0.5, **SHARED, "queries": 32, "kernel": 7}),
        ({"method": "snapkv"}, {"method": "snapkv", "keep": 0.5, **SHARED, "queries": 32, "kernel": 5}),
    ],
)  # fmt: skip
def test_taken(asked: Any, complete: Any) -> None:
    assert checked(asked, TERMS) == complete
    assert checked(complete, TERMS) == complete


WRONG: list[tuple[Any, str, str]] = [
    (None, "kv", "invalid"),
    (True, "kv", "invalid"),
    ("on", "kv", "invalid"),
    ([], "kv", "invalid"),
    ({"budget": 51}, "kv.budget", "invalid"),
    ({"budget": 52, "recent": 33}, "kv.budget", "invalid"),
    ({"budget": 0}, "kv.budget", "invalid"),
    ({"budget": -64}, "kv.budget", "invalid"),
    ({"budget": 64.0}, "kv.budget", "invalid"),
    ({"budget": "64"}, "kv.budget", "invalid"),
    ({"budget": True}, "kv.budget", "invalid"),
    ({"budget": None}, "kv.budget", "invalid"),
    ({"budget": 10**400}, "kv.budget", "invalid"),
    ({"budget": 4097}, "kv.budget", "forbidden"),
    ({"budget": 64, "keep": 0.5}, "kv.keep", "invalid"),
    ({"keep": 0}, "kv.keep", "invalid"),
    ({"keep": 0.5, "max_budget": 51}, "kv.max_budget", "invalid"),
    ({"max_budget": True}, "kv.max_budget", "invalid"),
    ({"max_budget": "64"}, "kv.max_budget", "invalid"),
    ({"budget": 64, "max_budget": 64}, "kv.max_budget", "invalid"),
    ({"keep": -0.5}, "kv.keep", "invalid"),
    ({"keep": 1.0001}, "kv.keep", "invalid"),
    ({"keep": float("nan")}, "kv.keep", "invalid"),
    ({"keep": float("inf")}, "kv.keep", "invalid"),
    ({"keep": True}, "kv.keep", "invalid"),
    ({"keep": "0.5"}, "kv.keep", "invalid"),
    ({"keep": None}, "kv.keep", "invalid"),
    ({"sinks": -1}, "kv.sinks", "invalid"),
    ({"sinks": 4.0}, "kv.sinks", "invalid"),
    ({"recent": 0}, "kv.recent", "invalid"),
    ({"recent": True}, "kv.recent", "invalid"),
    ({"keep": 0.5, "recent": 4096}, "kv.recent", "forbidden"),  # more than the cap, whatever the prompt
    ({"keep": 0.5, "sinks": 4096}, "kv.sinks", "forbidden"),
    ({"defer": "no"}, "kv.defer", "invalid"),
    ({"per_head": 1}, "kv.per_head", "invalid"),
    ({"per_head": None}, "kv.per_head", "invalid"),
    ({"method": "snapkw"}, "kv.method", "invalid"),
    ({"method": ["snapkv"]}, "kv.method", "invalid"),
    ({"method": None}, "kv.method", "invalid"),
    ({"method": "token_recycling"}, "kv.method", "invalid"),
    ({"method": "razor_observed"}, "kv.method", "unsupported"),
    ({"windows": 3}, "kv.windows", "invalid"),
    ({"windows": None}, "kv.windows", "invalid"),
    ({"method": "snapkv", "kernel": 64}, "kv.kernel", "invalid"),
    ({"method": "snapkv", "kernel": True}, "kv.kernel", "invalid"),
    ({"method": "snapkv", "kernel": 5.0}, "kv.kernel", "invalid"),
    ({"method": "snapkv", "kernel": [5]}, "kv.kernel", "invalid"),
    ({"method": "lacache", "span": 2, "overlap": 2}, "kv.overlap", "invalid"),
    ({"method": "lacache", "span": 6}, "kv.span", "invalid"),  # it would drop nothing in six layers
]


@pytest.mark.parametrize(("asked", "field", "code"), WRONG)
def test_refused(asked: Any, field: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        checked(asked, TERMS)
    assert (caught.value.field, caught.value.code) == (field, f"thrift_{code}")
    assert str(caught.value) == f"{field}: {caught.value.why}" and len(str(caught.value)) < 500


@pytest.mark.parametrize(("asked", "field", "code"), WRONG)
def test_gateway_and_stock_server_give_the_same_reasons(asked: Any, field: str, code: str) -> None:
    with pytest.raises(ContractError) as gateway:
        resolve({"kv": asked}, capabilities(True, "auto", 16, TERMS))
    with pytest.raises(ValueError) as stock:
        check_contract({"kv": asked}, TERMS)
    assert gateway.value.message.removeprefix("thrift.") == str(stock.value).removeprefix("thriftree.")
    assert (gateway.value.param, gateway.value.code) == (f"thrift.{field}", f"thrift_{code}")


def test_a_stock_server_takes_what_is_right_as_text_too() -> None:
    check_contract('{"kv": {"method": "snapkv", "budget": 64}, "speculation": "off"}', TERMS)
    check_contract({"kv": "off"})
    check_contract("off")
    with pytest.raises(ValueError, match=r"^thriftree\.kv: this server was started without KV compression"):
        check_contract('{"kv": {"budget": 64}}')


def test_without_compression_only_off_is_taken() -> None:
    for terms, why in ((Terms(), NOT_HERE), (Terms(reason="sliding window"), "sliding window")):
        assert checked("off", terms) == default(terms) == named("max", terms) == "off"
        with pytest.raises(Refused, match=re.escape(why)):
            checked({"budget": 64}, terms)


def test_true_is_not_one() -> None:
    """A parameter's default is compared before its type is checked."""
    assert registry.describe("pyramid_kv").parameters["properties"]["beta"]["default"] == 20.0
    free = replace(TERMS, missing={})
    assert checked({"method": "pyramid_kv", "beta": 20}, free)["beta"] == 20.0  # type: ignore[index]
    with pytest.raises(Refused, match="kernel"):
        checked({"method": "pyramid_kv", "kernel": True}, free)


@pytest.mark.parametrize(
    ("asked", "prompt", "kept"),
    [
        ({"budget": 64}, 9, 64),
        ({"keep": 0.25}, 1000, 250),
        ({"keep": 0.25}, 1001, 251),
        ({"keep": 0.25}, 100, 52),  # the least
        ({"keep": 1}, 9000, 4096),  # the cap
        ({"keep": 0.5, "max_budget": 900}, 9000, 900),
        ({"keep": 0.5, "max_budget": 900}, 1000, 500),
        ({"keep": 1, "max_budget": 5000}, 9000, 4096),
    ],
)
def test_budget(asked: dict[str, Any], prompt: int, kept: int) -> None:
    kv = checked(asked, TERMS)
    assert isinstance(kv, dict) and budget(kv, prompt, TERMS) == kept


TIERED = replace(TERMS, missing={}, tiers=3)


@pytest.mark.parametrize("beta", [1.0, 1.5, 20.0, 1000.0])
@pytest.mark.parametrize("asked", [{"budget": 4096}, {"keep": 1.0}, {"budget": 52}, {}])
def test_layers_that_get_more_than_others_hold_the_cap_too(asked: dict[str, Any], beta: float) -> None:
    """Of any budget that is taken, the widest tier is within the cap; a larger one is a 400 that names the field."""
    wish = {"method": "pyramid_kv", "beta": beta, **asked}
    try:
        kv = checked(wish, TIERED)
    except Refused as error:
        assert beta > 1 and asked == {"budget": 4096}
        assert (error.code, error.field) == ("thrift_forbidden", "kv.budget")
        most = int(error.why.rpartition(" ")[2])
        kv = checked({**wish, "budget": most}, TIERED)
        with pytest.raises(Refused, match="--kv-max-tokens"):
            checked({**wish, "budget": most + 1}, TIERED)
    assert isinstance(kv, dict) and checked(kv, TIERED) == kv
    params = SimpleNamespace(max_tokens=100000, extra_args={"thriftree": {"kv": kv}})
    plan = plan_of(params, 20000, TIERED)
    assert plan is not None
    rows = [plan.window(Tier(tier, 3)).budget for tier in range(3)]
    assert max(rows) <= 4096 and min(rows) >= TIERED.least() and sum(rows) <= 3 * plan.budget + 3
    if asked != {"budget": 52}:
        assert max(rows) >= 4094, "as much as the cap allows"


def test_a_default_method_with_tiers_begins_to_work_within_the_cap() -> None:
    terms = replace(TIERED, method="pyramid_kv")
    kv = default(terms)
    assert isinstance(kv, dict) and 2000 < kv["budget"] < 2200 and checked(kv, terms) == kv


def test_a_keys_cap_and_the_servers() -> None:
    assert TERMS.held_to(None) == TERMS.held_to(4096) == TERMS.held_to(9999) == TERMS
    assert TERMS.held_to(100).max_tokens == 100 and TERMS.held_to(1).max_tokens == TERMS.least()
    assert replace(TERMS, max_tokens=None).held_to(9999).max_tokens == 9999
    with pytest.raises(Refused, match=r"this key's cap of 100 tokens$"):
        checked({"budget": 101}, TERMS.held_to(100))


def test_under_a_cap_the_default_begins_to_work_at_the_cap() -> None:
    assert default(replace(TERMS, max_tokens=None)) == "off"
    assert default(TERMS) == {"method": "observed", "budget": 4096, **SHARED}
    assert named("exact", TERMS) == named("off", TERMS) == "off"
    assert named("max", TERMS) == default(TERMS)


_COUNTS = st.integers(-1, 80) | st.booleans() | st.none()
_ANY = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from([*registry.names(), "auto", 3]),
        "budget": _COUNTS | st.integers(4000, 5000) | st.floats(),
        "keep": st.floats() | _COUNTS,
        "max_budget": _COUNTS,
        "sinks": _COUNTS,
        "recent": _COUNTS,
        "defer": st.booleans() | st.integers(0, 1),
        "per_head": st.booleans() | st.integers(0, 1),
        "queries": _COUNTS,
        "noise": st.floats(),
        "span": _COUNTS,
    },
)


@given(_ANY)
def test_what_is_taken_is_its_own_answer_and_fits_the_schema(asked: dict[str, Any]) -> None:
    try:
        kv = checked(asked, TERMS)
    except Refused as error:
        assert error.field == "kv.method" or error.field.removeprefix("kv.") in {**asked, "recent": 0}
        return
    assert isinstance(kv, dict) and checked(kv, TERMS) == kv
    assert ("budget" in kv) != ("keep" in kv)
    schema = parameters(registry.describe(kv["method"]), TERMS)
    jsonschema.Draft7Validator(schema).validate({name: value for name, value in asked.items() if name != "method"})
    assert TERMS.least(kv["sinks"], kv["recent"]) <= budget(kv, 1000, TERMS) <= 4096
