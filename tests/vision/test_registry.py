"""What the server says about the methods, and what a request may set of them."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.vision.vision_methods import each_method
from thriftree.plugins.vision import registry, request
from thriftree.plugins.vision.image import Tower

#: The methods that the contract names.
NAMES = [
    "aim",
    "avgpool",
    "divprune",
    "dpp",
    "fopru",
    "globalcom2",
    "hiprune",
    "pitome",
    "random",
    "recoverable",
    "stride",
    "todre",
    "token_corr_like",
    "tome",
    "vflowopt",
    "visionzip",
]
CONTROLS = {"random", "stride", "avgpool"}


def test_the_names_are_the_contracts() -> None:
    assert sorted(registry.names()) == NAMES


@each_method
def test_descriptions_fit_the_configurations(method: str, options: dict[str, Any]) -> None:
    said, made = registry.describe(method), registry.configure(method, options)
    assert said.name == method and said.family == "vision" and not said.exact
    assert said.summary.endswith(".") and "\n" not in said.summary
    assert (said.needs_text, said.merges) == (made.needs_text, made.merges)
    assert bool(said.paper) == (method not in CONTROLS)
    Draft202012Validator.check_schema(said.parameters)
    Draft202012Validator(said.parameters).validate(options)
    defaults = {name: spec["default"] for name, spec in said.parameters["properties"].items()}
    assert registry.configure(method, defaults) == registry.configure(method)
    assert all(getattr(made, name) == value for name, value in options.items())
    assert all("description" in spec for spec in said.parameters["properties"].values())
    hash(made)


def test_who_needs_attention() -> None:
    without = {name for name in registry.names() if not registry.describe(name).needs_attention}
    assert without == {"divprune", "dpp", "aim", *CONTROLS}


@each_method
def test_a_model_without_attention_refuses_those_that_need_it(method: str, options: dict[str, Any]) -> None:
    made = registry.configure(method, options)
    made.check(Tower(layers=24))
    if made.taps(Tower(layers=24)):
        with pytest.raises(ValueError, match=r"^method: it reads the attention"):
            made.check(None)
    else:
        made.check(None)


@each_method
def test_taps_are_layers_that_can_be_read(method: str, options: dict[str, Any]) -> None:
    made = registry.configure(method, options)
    for tower in (Tower(layers=1), Tower(layers=23, depth=24), Tower(layers=32, whole=(7, 15, 23, 31))):
        assert all(tap.layer in (tower.whole or range(tower.layers)) for tap in made.taps(tower))


def test_parameters_do_not_hide_the_fields_that_all_methods_share() -> None:
    for method in registry.names():
        assert not set(request.SHARED) & set(registry.describe(method).parameters["properties"])


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("divprun", {}, r"^method: unknown method 'divprun', expected one of divprune, "),
        ("divprune", {"seed": 1}, r"^seed: divprune has no such parameter, it has none$"),
        ("fopru", {"strategy": "column"}, r"^strategy: expected one of rank, row, got 'column'$"),
        ("hiprune", {"alpha": 1.5}, r"^alpha: must be between 0.0 and 1.0, got 1.5$"),
        ("hiprune", {"layer": 99}, r"^layer: must be between -64 and 63, got 99$"),
        ("vflowopt", {"cell": float("nan")}, r"^cell: must be between 0.05 and 1.0, got nan$"),
        ("dpp", {"relevance": True}, r"^relevance: expected string, got bool$"),
    ],
)
def test_bad_options_name_the_field(method: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        registry.configure(method, options)


def test_one_default() -> None:
    assert [name for name in registry.names() if registry.describe(name).default] == [registry.DEFAULT_METHOD]
