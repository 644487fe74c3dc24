"""A method's configuration is a dataclass; here it becomes a JSON schema, and a request's options are held to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

_JSON_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


class Family:
    """A family's methods by name. A module is imported when its method is first asked for."""

    def __init__(self, package: str, methods: Mapping[str, tuple[str, ...]]) -> None:
        """`methods`: name -> module in the package, ..., its configuration's class."""
        self._package, self._methods = package, methods

    def names(self) -> tuple[str, ...]:
        return tuple(self._methods)

    def config(self, name: str) -> Any:
        """The class of a method's configuration. Raises ValueError for a name that is none."""
        if name not in self._methods:
            raise ValueError(f"method: unknown method {name!r}, expected one of {', '.join(self._methods)}")
        module, *_, config = self._methods[name]
        return getattr(import_module(f"{self._package}.{module}"), config)

    def configure(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """The configuration with `options` checked against its schema.

        Raises:
            ValueError: the message starts with the field's name.
        """
        return built(name, self.config(name), options)


def parameters(config: Any) -> dict[str, Any]:
    """JSON schema of the fields of a dataclass: types, defaults, and what their `metadata` says."""
    hints = get_type_hints(config)
    properties = {spec.name: _schema(spec, hints[spec.name]) for spec in fields(config)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def summary(config: Any) -> str:
    """The first paragraph of its docstring, on one line."""
    return " ".join((config.__doc__ or "").split("\n\n")[0].split())


def built(name: str, config: Any, options: Mapping[str, Any] | None) -> Any:
    """``config(**options)`` for method `name`, with `options` checked against its schema.

    Raises:
        ValueError: the message starts with the field's name.
    """
    properties = parameters(config)["properties"]
    checked = {}
    for option, value in (options or {}).items():
        if option not in properties:
            expected = f"expected one of {', '.join(properties)}" if properties else "it has none"
            raise ValueError(f"{option}: {name} has no such parameter, {expected}")
        checked[option] = _checked(option, value, properties[option])
    return config(**checked)


def _schema(spec: Field[Any], kind: Any) -> dict[str, Any]:
    schema: dict[str, Any] = dict(spec.metadata)
    if get_origin(kind) is Literal:
        schema |= {"type": "string", "enum": list(get_args(kind))}
    else:
        schema["type"] = _JSON_TYPES[kind]
    if spec.default is not MISSING:
        schema["default"] = spec.default
    return schema


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
