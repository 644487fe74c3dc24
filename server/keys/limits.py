"""Caps and quotas as people write them (YAML, JSON, the command line) and as the database keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from thriftree.plugins.kv_cache import registry as kv
from thriftree.plugins.speculative import registry
from thriftree.plugins.vision import registry as vision
from thriftree.server.contract import PROFILES
from thriftree.server.principal import Caps, Quota

_Check = Callable[[Any], Any]


def caps_of(given: Mapping[str, Any]) -> Caps:
    """Caps from an object. Raises ValueError("<field>: why")."""
    return Caps(**_checked(given, _CAPS))


def quota_of(given: Mapping[str, Any]) -> Quota:
    """A quota from an object. Raises ValueError("<field>: why")."""
    return Quota(**_checked(given, _QUOTA))


def weight_of(given: Any) -> float:
    """A tenant's weight in fair queueing. Raises ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1e6:
        raise ValueError("must be a number above 0, at most 1000000")
    return float(given)


def to_json(limits: Caps | Quota) -> str:
    """What differs from the default, as JSON."""
    default = asdict(type(limits)())
    return json.dumps({name: value for name, value in asdict(limits).items() if value != default[name]})


def object_of(text: str) -> dict[str, Any]:
    """JSON text that must be an object. Raises ValueError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("must be a JSON object")
    return found


def _checked(given: Mapping[str, Any], checks: Mapping[str, _Check]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"must be an object with any of {', '.join(checks)}")
    values = {}
    for name, value in given.items():
        if name not in checks:
            raise ValueError(f"{name}: unknown; expected {', '.join(checks)}")
        try:
            values[name] = checks[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return values


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _count(least: int) -> _Check:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= 2**53:
            raise ValueError(f"must be an integer from {least}")
        return value

    return check


def _names(known: Callable[[], tuple[str, ...]] | None = None) -> _Check:
    def check(value: Any) -> tuple[str, ...]:
        # YAML reads a bare `off` as false
        names = ["off" if name is False else name for name in value] if isinstance(value, list | tuple) else []
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("must be a list of names")
        for name in names:
            if known is not None and name not in known():
                raise ValueError(f"unknown name {name!r}; expected {', '.join(known())}")
        return tuple(names)

    return check


def _priority(value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise ValueError("must be an integer; lower runs earlier")
    return value


_CAPS: dict[str, _Check] = {
    "models": _optional(_names()),
    "max_tokens": _optional(_count(1)),
    "profiles": _optional(_names(lambda: PROFILES)),
    "methods": _optional(_names(lambda: (*registry.names(), *kv.names(), *vision.names()))),
    "max_kv_budget": _optional(_count(1)),
    "max_visual_tokens": _optional(_count(1)),
    "priority": _priority,
}
_QUOTA: dict[str, _Check] = {
    "requests_per_minute": _optional(_count(1)),
    "tokens_per_minute": _optional(_count(1)),
    "concurrent": _optional(_count(1)),
}
