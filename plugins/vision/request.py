"""`thrift.vision`: what a request may ask for and what the engine gets. The gateway and a stock server share it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from thriftree.plugins.refused import Refused
from thriftree.plugins.vision import late, registry
from thriftree.plugins.vision.profiles import PROFILES

#: What every method takes; the rest of an object is the method's own.
SHARED = ("method", "keep", "keep_tokens", "late")
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
    late_layer: int | None = None  # the first that may go without visual tokens; None: all have them
    step_tokens: int = 0  # of the longest prompt that comes in one step, where there are late layers


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
    """What was asked, complete: ``{"method", "keep" or "keep_tokens", maybe "late", ...own}``; it is its own answer.

    Who asks for `late` alone gets images that enter whole.

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
    size = {"keep": min(1.0, float(terms.max_keep))} if asked.keys() == {"late"} else _size(asked, terms)
    return {"method": method, **size, **_late(asked, terms), **own}


def first_stage(vision: Resolved) -> Resolved:
    """What becomes of an image before the language model: all but `late`."""
    return vision if isinstance(vision, str) else {name: value for name, value in vision.items() if name != "late"}


def check_late(asked: Any, tokens: int, terms: Terms) -> None:
    """Raise Refused where a prompt of so many tokens cannot be given what it asks of the late layers."""
    chosen = late_checked(asked, terms)
    if chosen is not None and chosen.method == "attention" and tokens > terms.step_tokens:
        why = (
            f"attention needs the whole prompt in one step, and {tokens} tokens are above this server's "
            f"{terms.step_tokens} (--max-num-batched-tokens); drop, random and stride do not"
        )
        raise Refused("thrift_unsupported", "vision.late.method", why)


def late_checked(asked: Any, terms: Terms) -> late.Late | None:
    """`late.checked` on this server. Raises Refused."""
    try:
        chosen = late.checked(asked)
    except ValueError as error:
        name, _, why = str(error).partition(": ")
        raise Refused("thrift_invalid", f"vision.late.{name}".rstrip("."), why) from None
    if chosen is not None and terms.late_layer is None:
        raise Refused("thrift_unsupported", "vision.late", late.NOT_HERE)
    return chosen


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
    if terms.late_layer is not None:
        shared["late"] = late.schema(terms.late_layer)
    return {**method.parameters, "properties": {**shared, **method.parameters["properties"]}}


def _late(asked: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    chosen = late_checked(asked["late"], terms) if "late" in asked else None
    return {} if chosen is None else {"late": asdict(chosen)}


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
