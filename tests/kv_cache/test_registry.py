"""What the server says about the methods, and what a request may set of them."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from kv_methods import each_method

from thriftree.plugins.kv_cache import registry


@each_method
def test_descriptions_fit_the_configurations(method: str, options: dict[str, Any]) -> None:
    said, made = registry.describe(method), registry.configure(method, options)
    assert said.name == method and said.family == "kv" and not said.exact
    assert said.summary.endswith(".") and "\n" not in said.summary
    assert (said.window, said.observes, said.needs_rope, said.retrieval, said.defer) == (
        made.window, made.observes, made.needs_rope, made.retrieval, made.defer,
    )  # fmt: skip
    Draft202012Validator.check_schema(said.parameters)
    Draft202012Validator(said.parameters).validate(options)
    defaults = {name: spec["default"] for name, spec in said.parameters["properties"].items()}
    assert registry.configure(method, defaults) == registry.configure(method)
    assert all(getattr(made, name) == value for name, value in options.items())
    assert all("description" in spec for spec in said.parameters["properties"].values())
    hash(made)  # requests with the same options share what was made for them


def test_parameters_do_not_hide_the_fields_that_all_methods_share() -> None:
    """These names mean the same for every method (`plugins/kv_cache/request.py`)."""
    for method in registry.names():
        own = registry.describe(method).parameters["properties"]
        assert not {"method", "budget", "keep", "sinks", "recent", "defer", "per_head"} & set(own)


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("snapkvv", {}, r"^method: unknown method 'snapkvv', expected one of razor_observed, "),
        ("random", {"seed": 1}, r"^seed: random has no such parameter, it has none$"),
        ("snapkv", {"size": 1}, r"^size: snapkv has no such parameter, expected one of queries, kernel$"),
        ("snapkv", {"kernel": 0}, r"^kernel: must be between 1 and 63, got 0$"),
        ("snapkv", {"kernel": True}, r"^kernel: expected integer, got bool$"),
        ("h2o", {"recent_share": float("nan")}, r"^recent_share: must be between 0.0 and 1.0, got nan$"),
        ("lagkv", {"across": 1}, r"^across: expected boolean, got int$"),
    ],
)
def test_bad_options_name_the_field(method: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        registry.configure(method, options)


def test_whole_numbers_are_numbers() -> None:
    assert registry.configure("h2o", {"recent_share": 1}) == registry.configure("h2o", {"recent_share": 1.0})


def test_one_default() -> None:
    assert [name for name in registry.names() if registry.describe(name).default] == [registry.DEFAULT_METHOD]
