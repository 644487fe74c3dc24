"""Method name -> drafter, built when first asked for; and what a server says about its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.memory import Memory

DEFAULT_METHOD = "auto"

#: name -> module in this package, drafter, its configuration. One line per method.
_METHODS: dict[str, tuple[str, str, str]] = {
    "auto": ("auto", "Auto", "AutoConfig"),
    "token_recycling": ("token_recycling", "TokenRecycling", "TokenRecyclingConfig"),
    "trie_lookahead": ("trie_lookahead", "TrieLookahead", "TrieLookaheadConfig"),
    "suffix": ("suffix", "Suffix", "SuffixConfig"),
}
_JSON_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True, slots=True)
class Method:
    """A method as the server presents it; `parameters` is a JSON schema of what a request may set."""

    name: str
    paper: str
    summary: str
    parameters: dict[str, Any]
    family: str = "speculation"
    exact: bool = True
    default: bool = False


def names() -> tuple[str, ...]:
    return tuple(_METHODS)


def _config_type(name: str) -> type:
    if name not in _METHODS:
        raise ValueError(f"method: unknown method {name!r}, expected one of {', '.join(_METHODS)}")
    module, _, config = _METHODS[name]
    found: type = getattr(import_module(f"thriftree.plugins.speculative.{module}"), config)
    return found


def describe(name: str) -> Method:
    config: Any = _config_type(name)
    hints = get_type_hints(config)
    properties = {spec.name: _schema(spec, hints[spec.name]) for spec in fields(config)}
    return Method(
        name=name,
        paper=config.paper,
        summary=" ".join((config.__doc__ or "").split("\n\n")[0].split()),
        parameters={"type": "object", "properties": properties, "additionalProperties": False},
        default=name == DEFAULT_METHOD,
    )


def _schema(spec: Field[Any], kind: Any) -> dict[str, Any]:
    schema: dict[str, Any] = dict(spec.metadata)
    if get_origin(kind) is Literal:
        schema |= {"type": "string", "enum": list(get_args(kind))}
    else:
        schema["type"] = _JSON_TYPES[kind]
    if spec.default is not MISSING:
        schema["default"] = spec.default
    return schema


def configure(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """The method's configuration with `options` checked against its schema.

    Raises:
        ValueError: the message starts with the field's name.
    """
    config = _config_type(name)
    properties = describe(name).parameters["properties"]
    checked = {}
    for option, value in (options or {}).items():
        if option not in properties:
            raise ValueError(f"{option}: {name} has no such parameter, expected one of {', '.join(properties)}")
        checked[option] = _checked(option, value, properties[option])
    return config(**checked)


def _checked(option: str, value: Any, schema: Mapping[str, Any]) -> Any:
    kind = schema["type"]
    if kind == "number" and type(value) is int:
        value = float(value)
    if _JSON_TYPES.get(type(value)) != kind:
        raise ValueError(f"{option}: expected {kind}, got {type(value).__name__}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{option}: expected one of {', '.join(schema['enum'])}, got {value!r}")
    low, high = schema.get("minimum"), schema.get("maximum")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ValueError(f"{option}: must be between {low} and {high}, got {value}")
    return value


def build(name: str, memory: Memory, options: Mapping[str, Any] | None = None) -> Drafter:
    """A drafter of this method over `memory`, which it shares with all others built over it."""
    config = configure(name, options)
    module, drafter, _ = _METHODS[name]
    made: Drafter = getattr(import_module(f"thriftree.plugins.speculative.{module}"), drafter)(memory, config)
    return made
