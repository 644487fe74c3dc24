"""What a key may ask for: the pure part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.kv_cache.profiles import PROFILES, Profile
from thriftree.plugins.kv_cache.request import Terms
from thriftree.server import permits
from thriftree.server.contract import method_of, resolve
from thriftree.server.errors import ApiError, ContractError
from thriftree.server.methods import capabilities
from thriftree.server.principal import Caps

ON, OFF = capabilities(True, "auto", 16), capabilities(False, "auto", 16)
CHAT, TEXT = permits.ROUTES["/v1/chat/completions"], permits.ROUTES["/v1/completions"]
RESPONSES, MESSAGES = permits.ROUTES["/v1/responses"], permits.ROUTES["/v1/messages"]


@pytest.mark.parametrize(
    ("route", "body", "missing"),
    [
        (CHAT, {}, {"max_completion_tokens": 100}),
        (CHAT, {"n": 3}, {"max_completion_tokens": 33}),
        (CHAT, {"max_tokens": 100}, {}),
        (CHAT, {"max_completion_tokens": 50, "n": 2}, {}),
        (CHAT, {"max_completion_tokens": None, "max_tokens": 5}, {}),
        (CHAT, {"max_completion_tokens": None, "max_tokens": None}, {"max_completion_tokens": 100}),
        (CHAT, {"max_output_tokens": 5}, {"max_completion_tokens": 100}),  # not a field of this route
        (TEXT, {}, {}),  # sixteen, by OpenAI's default
        (TEXT, {"prompt": ["a"] * 10}, {"max_tokens": 10}),
        (TEXT, {"prompt": [[1, 2], [3]], "max_tokens": 50}, {}),
        (TEXT, {"prompt": [1, 2, 3, 4], "max_tokens": 100}, {}),  # one prompt, as ids
        (TEXT, {"max_tokens": 0, "echo": True}, {}),
        (TEXT, {"max_completion_tokens": 5, "n": 10}, {"max_tokens": 10}),
        (RESPONSES, {}, {"max_output_tokens": 100}),
        (RESPONSES, {"max_tokens": 5}, {"max_output_tokens": 100}),
        (RESPONSES, {"max_output_tokens": 100}, {}),
        (MESSAGES, {"max_tokens": 100}, {}),
        (MESSAGES, {}, {"max_tokens": 100}),
    ],
)
def test_within_the_cap(route: permits.Route, body: dict[str, Any], missing: dict[str, int]) -> None:
    assert permits.check_tokens(body, route, 100) == missing


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"max_tokens": 101}, 403, "max_tokens"),
        ({"max_completion_tokens": 101}, 403, "max_completion_tokens"),
        ({"max_completion_tokens": 1, "max_tokens": 101}, 403, "max_tokens"),
        ({"max_output_tokens": 101}, 403, "max_output_tokens"),
        ({"max_tokens": 51, "n": 2}, 403, "max_tokens"),
        ({"max_tokens": 51, "best_of": 2}, 403, "max_tokens"),
        ({"max_tokens": 51, "prompt": ["a", "b"]}, 403, "max_tokens"),
        ({"max_tokens": 26, "prompt": ["a", "b"], "n": 2}, 403, "max_tokens"),
        ({"max_tokens": 51, "prompt": "a", "prompt_embeds": "b"}, 403, "max_tokens"),
        ({"n": 101}, 403, "n"),
        ({"n": 10**400}, 403, "n"),
        ({"prompt": ["a"] * 101}, 403, "prompt"),
        ({"max_tokens": 10**400}, 403, "max_tokens"),
        ({"max_tokens": -1}, 400, "max_tokens"),  # no end, to some servers
        ({"max_tokens": "5"}, 400, "max_tokens"),  # vLLM would take it for a number
        ({"max_tokens": 5.0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": [5]}, 400, "max_tokens"),
        ({"n": "2"}, 400, "n"),
    ],
)
def test_beyond_the_cap(body: dict[str, Any], status: int, param: str) -> None:
    for route in (CHAT, TEXT, RESPONSES, MESSAGES):
        with pytest.raises(ApiError) as caught:
            permits.check_tokens(body, route, 100)
        assert (caught.value.status, caught.value.param) == (status, param)
        assert caught.value.code in ("max_tokens_not_allowed", "invalid_type", "invalid_value")


_FIELDS = st.one_of(st.none(), st.integers(-5, 300), st.sampled_from(["7", 7.0, True]))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: _FIELDS for name in ("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens")
        }
        | {"prompt": st.one_of(st.just("a"), st.lists(st.just("a"), max_size=9), st.lists(st.integers(0, 9)))},
    ),
    st.sampled_from([CHAT, TEXT, RESPONSES, MESSAGES]),
    st.integers(1, 200),
)
def test_no_request_gets_more_than_its_cap(body: dict[str, Any], route: permits.Route, cap: int) -> None:
    try:
        body = {**body, **permits.check_tokens(body, route, cap)}
    except ApiError as error:
        assert error.param in body
        return
    each = next((body[name] for name in route.limits if body.get(name) is not None), 16 if route is TEXT else None)
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and "a" in prompt else 1
    assert each is not None and each * max(1, body.get("n") or 1) * prompts <= cap


@pytest.mark.parametrize("model", ["large", "", None, 3, ["small"], "SMALL", "small "])
def test_models(model: Any) -> None:
    permits.check_model({"model": "small"}, Caps(models=("tiny", "small")))
    permits.check_model({"model": model}, Caps())
    for body in ({"model": model}, {}):
        with pytest.raises(ApiError) as caught:
            permits.check_model(body, Caps(models=("tiny", "small")))
        error = caught.value
        assert (error.status, error.code, error.param) == (403, "model_not_allowed", "model")
        assert "tiny, small" in error.message


@pytest.mark.parametrize(
    ("cap", "body", "headers", "missing"),
    [
        (0, {}, [], {}),
        (0, {"priority": 0}, [b"3"], {}),
        (5, {}, [], {"priority": 5}),
        (5, {"priority": None}, [], {"priority": 5}),
        (5, {"priority": 5}, [], {}),
        (5, {"priority": 9}, [b"nonsense"], {}),
        (-5, {}, [], {}),
        (-5, {"priority": -5}, [b"-5"], {}),
    ],
)
def test_priority(cap: int, body: dict[str, Any], headers: list[bytes], missing: dict[str, int]) -> None:
    assert permits.check_priority(body, CHAT, headers, Caps(priority=cap)) == missing


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"priority": 4}, [], "priority"),
        ({"priority": -(10**30)}, [], "priority"),
        ({"priority": "4"}, [], "priority"),
        ({"priority": 9}, [b"4"], "x-vllm-priority"),
        ({"priority": 9}, [b"9", b" -1 "], "x-vllm-priority"),
    ],
)
def test_better_than_its_own(body: dict[str, Any], headers: list[bytes], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        permits.check_priority(body, CHAT, headers, Caps(priority=5))
    assert caught.value.param == param and caught.value.status in (400, 403)


SUFFIX = {"method": "suffix", "max_nodes": 16}
AUTO = {"method": "auto", "max_nodes": 16}


@pytest.mark.parametrize(
    ("caps", "thrift", "speculation"),
    [
        (Caps(methods=("auto", "suffix")), None, AUTO),
        (Caps(methods=("suffix",)), None, SUFFIX),
        (Caps(methods=("suffix", "trie_lookahead")), "exact", SUFFIX),
        (Caps(methods=("suffix",)), {"speculation": {"max_nodes": 4}}, {"method": "suffix", "max_nodes": 4}),
        (Caps(methods=("suffix",)), {"speculation": {"method": "suffix"}}, SUFFIX),
        (Caps(methods=("suffix",)), "off", "off"),
        (Caps(methods=("suffix",)), {"speculation": "off"}, "off"),
        (Caps(methods=("of_a_later_release",)), None, "off"),
        (Caps(profiles=("off",)), None, "off"),
        (Caps(profiles=("off",)), {}, "off"),
        (Caps(profiles=("exact", "max")), None, AUTO),
        (Caps(profiles=("exact",)), "exact", AUTO),
        (Caps(profiles=("exact",)), {"speculation": {"method": "suffix"}}, SUFFIX),
    ],
)
def test_thrift_within_the_caps(caps: Caps, thrift: Any, speculation: Any) -> None:
    assert permits.resolve_for(thrift, ON, caps) == {"speculation": speculation, "kv": "off", "vision": "off"}
    if thrift is None:
        assert permits.resolve_for(thrift, OFF, caps) == {"speculation": "off", "kv": "off", "vision": "off"}


KV = capabilities(True, "auto", 16, Terms(None, {"snapkv": "not here"}, method="observed"))
CAPPED = capabilities(True, "auto", 16, Terms(None, {"snapkv": "not here"}, method="observed", max_tokens=64))


@pytest.mark.parametrize(
    ("caps", "kv", "method"),
    [
        (Caps(methods=("suffix", "knorm")), {"budget": 64}, "knorm"),  # the key's first, in place of the default
        (Caps(methods=("knorm", "observed")), {"budget": 64}, "observed"),
        (Caps(methods=("knorm",)), {"method": "knorm", "keep": 0.5}, "knorm"),
        (Caps(methods=("snapkv", "h2o")), {"keep": 0.5}, "h2o"),
        (Caps(profiles=("off", "balanced")), {"budget": 64}, "observed"),
        (Caps(profiles=("exact",)), "off", None),
        (Caps(methods=("suffix",)), "off", None),
    ],
)
def test_kv_within_the_caps(caps: Caps, kv: Any, method: str | None) -> None:
    assert method_of(permits.resolve_for({"kv": kv}, KV, caps), "kv") == method


@pytest.mark.parametrize(
    ("caps", "kv", "param"),
    [
        (Caps(methods=("token_recycling",)), {"budget": 64}, "thrift.kv"),
        (Caps(methods=("token_recycling",)), {"method": "knorm", "budget": 64}, "thrift.kv"),
        (Caps(methods=("auto", "knorm")), {"method": "h2o", "budget": 64}, "thrift.kv.method"),
        (Caps(profiles=("off", "exact")), {"budget": 64}, "thrift.kv"),
        (Caps(profiles=("exact",), methods=("knorm",)), {"method": "knorm"}, "thrift.kv"),
    ],
)
def test_kv_beyond_the_caps(caps: Caps, kv: Any, param: str) -> None:
    with pytest.raises(ContractError) as caught:
        permits.resolve_for({"kv": kv}, KV, caps)
    assert (caught.value.code, caught.value.param) == ("thrift_forbidden", param)


@pytest.mark.parametrize(
    ("caps", "method"),
    [
        (Caps(methods=("auto", "h2o")), "h2o"),
        (Caps(methods=("auto",)), None),
        (Caps(methods=("auto", "snapkv")), None),  # not on this server
        (Caps(profiles=("exact",)), None),
        (Caps(profiles=("exact", "max")), "observed"),
    ],
)
def test_under_a_servers_cap_a_key_gets_what_it_may_use(caps: Caps, method: str | None) -> None:
    for thrift in (None, {"speculation": "off"}):
        assert method_of(permits.resolve_for(thrift, CAPPED, caps), "kv") == method


def test_a_profile_with_a_method_that_the_key_may_not_use_leaves_kv_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "balanced", Profile("measured", {"method": "knorm", "keep": 0.5}))
    assert method_of(permits.resolve_for("balanced", KV, Caps(methods=("auto", "knorm"))), "kv") == "knorm"
    for other in ("h2o", "observed"):  # the server's default is among them, or not
        assert method_of(permits.resolve_for("balanced", KV, Caps(methods=("auto", other))), "kv") is None


@pytest.mark.parametrize(
    ("caps", "thrift", "param"),
    [
        (Caps(methods=("suffix",)), {"speculation": {"method": "auto"}}, "thrift.speculation.method"),
        (Caps(methods=("suffix",)), {"speculation": "auto"}, "thrift.speculation"),
        (Caps(methods=("of_a_later_release",)), {"speculation": {"max_nodes": 2}}, "thrift.speculation"),
        (Caps(methods=("of_a_later_release",)), "exact", "thrift"),
        (Caps(profiles=("off",)), "exact", "thrift"),
        (Caps(profiles=("off",)), {"speculation": "auto"}, "thrift.speculation"),
        (Caps(profiles=("exact",)), "max", "thrift"),
        (Caps(profiles=("exact",)), "off", "thrift"),
    ],
)
def test_thrift_beyond_the_caps(caps: Caps, thrift: Any, param: str) -> None:
    with pytest.raises(ContractError) as caught:
        permits.resolve_for(thrift, ON, caps)
    assert (caught.value.code, caught.value.param) == ("thrift_forbidden", param)


@pytest.mark.parametrize("thrift", ["fast", 3, {"speed": 1}, {"speculation": {"method": "eagle9"}}, {"kv": "on"}])
@pytest.mark.parametrize("caps", [Caps(methods=("suffix",)), Caps(profiles=("exact",)), Caps(profiles=("off",))])
def test_nonsense_is_refused_under_caps_too(caps: Caps, thrift: Any) -> None:
    with pytest.raises(ContractError):
        permits.resolve_for(thrift, ON, caps)


@pytest.mark.parametrize("thrift", [None, "exact", {"speculation": {"method": "suffix"}}])
def test_without_caps_it_is_resolve(thrift: Any) -> None:
    assert permits.resolve_for(thrift, ON, Caps()) == resolve(thrift, ON)
