"""`thrift.kv`: what a request may ask for and what the engine gets. The gateway and a stock server share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import ceil
from typing import Any

from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.profiles import PROFILES
from thriftree.plugins.refused import Refused

SINKS, RECENT = 4, 32  # where a request does not say
#: What every method takes; the rest of an object is the method's own.
SHARED = ("method", "budget", "keep", "max_budget", "sinks", "recent", "defer", "per_head")
_MOST = 1 << 20  # of any count of tokens
NOT_HERE = "this server was started without KV compression (--thrift off, --kv-compression off or --vision-late-layer)"

#: What the engine gets: "off", or a method with all its parameters.
Resolved = str | dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """What a server grants. Made of the operator's options and of what the model allows."""

    reason: str | None = NOT_HERE  # why nothing is compressed here; None: it can be
    missing: Mapping[str, str] = field(default_factory=dict)  # method -> why this server does not have it
    method: str = registry.DEFAULT_METHOD  # of requests that name none
    keep: float = 0.5  # share of the prompt, of requests that say neither budget nor keep
    block: int = 16  # tokens of a block of the engine
    layers: int | None = None  # of the model
    max_tokens: int | None = None  # a request may keep so many per layer and head
    profile: str = "exact"  # of requests that say nothing
    tiers: int = 1  # groups of layers that a method may give budgets of their own
    keyed: bool = False  # `max_tokens` is a key's and not the server's

    def least(self, sinks: int = SINKS, recent: int = RECENT) -> int:
        """The smallest budget."""
        return sinks + recent + self.block

    @property
    def cap(self) -> str:
        """`max_tokens` in words."""
        of = f"this {'key' if self.keyed else 'server'}'s cap of {self.max_tokens} tokens"
        return of if self.keyed else f"{of} (--kv-max-tokens)"

    def held_to(self, most: int | None) -> Terms:
        """The same for a key whose requests may keep `most` tokens (None: as many as the server's)."""
        most = None if most is None else max(most, self.least())
        if most is None or (self.max_tokens is not None and self.max_tokens <= most):
            return self
        return replace(self, max_tokens=most, keyed=True)


def default(terms: Terms) -> Resolved:
    """For a request that says nothing: the profile's, and under a cap a method that begins to work at the cap."""
    return named(terms.profile, terms, capped=True)


def named(profile: str, terms: Terms, capped: bool = False) -> Resolved:
    """For a profile: `off` and `exact` leave the cache alone; `balanced` and `max` may compress, and do under a cap."""
    asked: Any = PROFILES[profile].kv if profile in PROFILES else "off"
    if terms.reason is not None:
        return "off"
    if asked == "off" or asked.get("method", terms.method) in terms.missing:
        return _capped(terms) if capped or profile in PROFILES else "off"
    return checked(asked, terms)


def _capped(terms: Terms) -> Resolved:
    most = _most(terms.method, {}, terms.least(), terms)
    return "off" if most is None else checked({"budget": most}, terms)


def checked(asked: Any, terms: Terms) -> Resolved:
    """What was asked, complete: ``{"method", "budget" or "keep", "sinks", "recent", "defer", "per_head", ...own}``.

    Beside ``"keep"`` there may be ``"max_budget"``, and is where a key has a cap: the engine knows the server's alone.
    A complete one is its own answer, so the engine may check again what the gateway has checked.

    Raises:
        Refused: a ValueError that names the field.
    """
    if asked == "off" and isinstance(asked, str):
        return "off"
    if not isinstance(asked, Mapping):
        raise Refused("thrift_invalid", "kv", 'must be "off" or an object {"method": ..., "budget": ...}')
    if terms.reason is not None:
        raise Refused("thrift_unsupported", "kv", terms.reason)
    method = _method(asked.get("method", terms.method), terms)
    sinks, recent = _count(asked, "sinks", SINKS, 0), _count(asked, "recent", RECENT, 1)
    own = {name: value for name, value in asked.items() if name not in SHARED}
    try:
        own = _own(method, own, terms.layers)
    except ValueError as error:
        name, _, why = str(error).partition(": ")
        raise Refused("thrift_invalid", f"kv.{name}", why or "not valid") from None
    return {
        "method": method,
        **_size(asked, sinks, recent, method, own, terms),
        "sinks": sinks,
        "recent": recent,
        "defer": _flag(asked, "defer", _described(method).defer),
        "per_head": _flag(asked, "per_head", False),
        **own,
    }


def whole(kv: Resolved) -> bool:
    """Whether such a request keeps all of its cache: nothing is dropped, or only less of it is read."""
    return isinstance(kv, str) or _described(kv["method"]).reads


def budget(kv: Mapping[str, Any], prompt: int, terms: Terms) -> int:
    """Tokens that a resolved request keeps per layer and head once its prompt has `prompt` tokens."""
    asked: int = kv["budget"] if "budget" in kv else ceil(kv["keep"] * prompt)
    least = terms.least(kv["sinks"], kv["recent"])
    own = {name: value for name, value in kv.items() if name not in SHARED}
    most = [limit for limit in (_most(kv["method"], own, least, terms), kv.get("max_budget")) if limit is not None]
    return max(least, min([asked, *most]))


def parameters(method: registry.Description, terms: Terms) -> dict[str, Any]:
    """JSON schema of what a request may set with this method."""
    count = {"type": "integer", "maximum": _MOST}
    most = {} if terms.max_tokens is None else {"maximum": terms.max_tokens}
    shared: dict[str, Any] = {
        "budget": {**count, "minimum": terms.least(0, 1), **most, "description": "tokens kept per layer and head"},
        "keep": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": terms.keep,
            "description": "the same as a share of the prompt; not together with budget",
        },
        "max_budget": {**count, "minimum": terms.least(0, 1), "description": "with keep: tokens at most"},
        "sinks": {**count, "minimum": 0, "default": SINKS, "description": "first tokens that always stay"},
        "recent": {**count, "minimum": 1, "default": RECENT, "description": "newest tokens that always stay"},
        "defer": {"type": "boolean", "default": method.defer, "description": "not before the prompt is complete"},
        "per_head": {"type": "boolean", "default": False, "description": "heads share a layer's budget by need"},
    }
    return {**method.parameters, "properties": {**shared, **method.parameters["properties"]}}


def _method(name: Any, terms: Terms) -> str:
    if not isinstance(name, str) or name not in registry.names():
        known = ", ".join(registry.names())
        raise Refused("thrift_invalid", "kv.method", f"unknown method {_shown(name)}; expected one of {known}")
    if name in terms.missing:
        raise Refused("thrift_unsupported", "kv.method", f"{name} is not available here: {terms.missing[name]}")
    return name


def _most(method: str, own: Mapping[str, Any], least: int, terms: Terms) -> int | None:
    """The largest budget under the cap: in no layer more than that, also where a method gives some more than others."""
    if terms.max_tokens is None or terms.tiers == 1:
        return terms.max_tokens
    made = registry.configure(method, own)
    share = max(made.share(tier, terms.tiers) for tier in range(terms.tiers))
    return least + int((terms.max_tokens - least) / share)


def _size(
    asked: Mapping[str, Any], sinks: int, recent: int, method: str, own: Mapping[str, Any], terms: Terms
) -> dict[str, Any]:
    """``{"budget": tokens}`` or ``{"keep": share}``."""
    least, cap = terms.least(sinks, recent), terms.max_tokens
    most = _most(method, own, least, terms)
    parts = f"{sinks} sinks, {recent} recent and a block of {terms.block}"
    if "budget" not in asked:
        if cap is not None and least > cap:
            why = f"{parts} are above {terms.cap}"
            raise Refused("thrift_forbidden", "kv.recent" if recent >= sinks else "kv.sinks", why)
        limits = [most] if terms.keyed and most is not None else []
        limits += [_tokens(asked, "max_budget", least, parts)] if "max_budget" in asked else []
        return {"keep": _share(asked.get("keep", terms.keep)), **({"max_budget": min(limits)} if limits else {})}
    for name in ("keep", "max_budget"):
        if name in asked:
            raise Refused("thrift_invalid", f"kv.{name}", "cannot be said together with budget")
    value = _tokens(asked, "budget", least, parts)
    if most is not None and value > most:
        why = f"{value} is above {terms.cap}"
        if most != cap:
            why += f" in some layers, which {method} gives more than others; its largest budget here is {most}"
        raise Refused("thrift_forbidden", "kv.budget", why)
    return {"budget": value}


def _tokens(asked: Mapping[str, Any], name: str, least: int, parts: str) -> int:
    value = asked[name]
    if type(value) is not int or not least <= value <= _MOST:
        raise Refused("thrift_invalid", f"kv.{name}", f"must be an integer from {least} ({parts}) to {_MOST}")
    return value


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise Refused("thrift_invalid", "kv.keep", "must be a share of the prompt: a number above 0, at most 1")
    return float(value)


def _count(asked: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = asked.get(name, default)
    if type(value) is not int or not least <= value <= _MOST:
        raise Refused("thrift_invalid", f"kv.{name}", f"must be an integer from {least} to {_MOST}")
    return value


def _flag(asked: Mapping[str, Any], name: str, default: bool) -> bool:
    value = asked.get(name, default)
    if not isinstance(value, bool):
        raise Refused("thrift_invalid", f"kv.{name}", "must be true or false")
    return value


def _own(method: str, given: dict[str, Any], layers: int | None) -> dict[str, Any]:
    """The method's own parameters, complete. Raises ValueError."""
    defaults = _defaults(method, layers)
    if all(name in defaults and _is(value, defaults[name]) for name, value in given.items()):
        return defaults
    made = registry.configure(method, given)
    if layers is not None:
        made.check(layers)
    return asdict(made)


def _is(value: Any, default: Any) -> bool:
    """Equal, and not only as True is equal to 1."""
    return type(value) is type(default) and bool(value == default)


def _shown(value: Any) -> str:
    return repr(value[:64]) if isinstance(value, str) else f"of type {type(value).__name__}"


@lru_cache
def _defaults(method: str, layers: int | None) -> dict[str, Any]:
    """Worked out once: it takes longer than all the rest."""
    made = registry.configure(method)
    if layers is not None:
        made.check(layers)
    return asdict(made)


@lru_cache
def _described(method: str) -> registry.Description:
    return registry.describe(method)
