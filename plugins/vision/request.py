"""`thrift.vision`: what a request may ask for and what the engine gets. The gateway and a stock server share it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from thriftree.plugins.refused import Refused
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.profiles import PROFILES

#: What every method takes; the rest of an object is the method's own.
SHARED = ("method", "keep", "keep_tokens")
_MOST = 1 << 20  # of any count of tokens
NOT_HERE = "this server was started without visual-token pruning (--thrift off or --vision-pruning off)"

#: What the engine gets: "off", or a method with all its parameters.
Resolved = str | dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """What a server grants. Made of the operator's options and of what the model allows."""

    reason: str | None = NOT_HERE  # why nothing is pruned here; None: it can be
    missing: Mapping[str, str] = field(default_factory=dict)  # method -> why this server does not have it
    method: str = registry.DEFAULT_METHOD  # of requests that name none
    keep: float = 0.25  # share of an image's tokens, of requests that say neither keep nor keep_tokens
    max_keep: float = 1.0  # no image may keep a larger share: what the encoder cache has room for
    profile: str = "exact"  # of requests that say nothing


def default(terms: Terms) -> Resolved:
    """For a request that says nothing: the profile's, and under a cap the default method at the cap."""
    return named(terms.profile, terms)


def named(profile: str, terms: Terms) -> Resolved:
    """For a profile: `off` and `exact` leave images alone, unless the server keeps no image whole."""
    asked: Any = PROFILES[profile].vision if profile in PROFILES else "off"
    if terms.reason is not None:
        return "off"
    if asked == "off" or asked.get("method", terms.method) in terms.missing:
        return "off" if terms.max_keep >= 1 else checked({"keep": terms.max_keep}, terms)
    return checked({**asked, "keep": min(asked["keep"], terms.max_keep)}, terms)


def checked(asked: Any, terms: Terms) -> Resolved:
    """What was asked, complete: ``{"method", "keep" or "keep_tokens", ...own}``; it is its own answer.

    Raises:
        Refused: a ValueError that names the field.
    """
    if asked == "off" and isinstance(asked, str):
        if terms.reason is None and terms.max_keep < 1:
            why = f"this server keeps at most {terms.max_keep:g} of an image (--vision-max-keep)"
            raise Refused("thrift_forbidden", "vision", why)
        return "off"
    if not isinstance(asked, Mapping):
        raise Refused("thrift_invalid", "vision", 'must be "off" or an object {"method": ..., "keep": ...}')
    if terms.reason is not None:
        raise Refused("thrift_unsupported", "vision", terms.reason)
    method = _method(asked.get("method", terms.method), terms)
    own = {name: value for name, value in asked.items() if name not in SHARED}
    try:
        own = asdict(registry.configure(method, own))
    except ValueError as error:
        name, _, why = str(error).partition(": ")
        raise Refused("thrift_invalid", f"vision.{name}", why or "not valid") from None
    return {"method": method, **_size(asked, terms), **own}


def canonical(vision: Resolved) -> str:
    """The same text for the same settings: part of an image's identity in every cache."""
    return json.dumps(vision, sort_keys=True, separators=(",", ":"))


def parameters(method: registry.Description, terms: Terms) -> dict[str, Any]:
    """JSON schema of what a request may set with this method."""
    shared: dict[str, Any] = {
        "keep": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": terms.max_keep,
            "default": min(terms.keep, terms.max_keep),
            "description": "share of each image's tokens that the language model gets",
        },
        "keep_tokens": {
            "type": "integer",
            "minimum": 1,
            "maximum": _MOST,
            "description": "the same as a count for each image; not together with keep",
        },
    }
    return {**method.parameters, "properties": {**shared, **method.parameters["properties"]}}


def _method(name: Any, terms: Terms) -> str:
    if not isinstance(name, str) or name not in registry.names():
        shown = repr(name[:64]) if isinstance(name, str) else f"of type {type(name).__name__}"
        known = ", ".join(registry.names())
        raise Refused("thrift_invalid", "vision.method", f"unknown method {shown}; expected one of {known}")
    if name in terms.missing:
        raise Refused("thrift_unsupported", "vision.method", f"{name} is not available here: {terms.missing[name]}")
    return name


def _size(asked: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """``{"keep": share}`` or ``{"keep_tokens": count}``."""
    if "keep_tokens" in asked:
        count = asked["keep_tokens"]
        if "keep" in asked:
            raise Refused("thrift_invalid", "vision.keep_tokens", "cannot be said together with keep")
        if type(count) is not int or not 1 <= count <= _MOST:
            raise Refused("thrift_invalid", "vision.keep_tokens", f"must be an integer from 1 to {_MOST}")
        return {"keep_tokens": count}
    share = asked.get("keep", min(terms.keep, terms.max_keep))
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise Refused("thrift_invalid", "vision.keep", "must be a share of the image: a number above 0, at most 1")
    if share > terms.max_keep:
        why = f"{share:g} is above this server's cap of {terms.max_keep:g} (--vision-max-keep)"
        raise Refused("thrift_forbidden", "vision.keep", why)
    return {"keep": float(share)}
