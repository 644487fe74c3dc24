"""What a key may ask for, against what a body asks. Pure functions; types are checked as strictly as a cap needs.

vLLM reads `"512"` and `512.0` as 512 where an integer is due. A cap that looked at integers only would be passed by
either, so a capped field of any other type is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from thriftree.plugins.kv_cache import registry as kv
from thriftree.plugins.vision import registry as vision
from thriftree.server.contract import LOSSY, PROFILES, Capabilities, resolve
from thriftree.server.errors import ApiError, ContractError
from thriftree.server.principal import Caps

#: Family -> its methods' names.
_LOSSY_NAMES: dict[str, Callable[[], tuple[str, ...]]] = {"kv": kv.names, "vision": vision.names}
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
#: vLLM takes it from here before it looks into the body.
PRIORITY_HEADER = b"x-vllm-priority"


@dataclass(frozen=True, slots=True)
class Route:
    """How a route can be held to caps.

    `limits`: its fields for completion tokens; the first one gets the cap where a request names none of them, unless
    the route's own `default` is within it.
    """

    limits: tuple[str, ...] = ()
    default: int | None = None
    priority: bool = False
    model: bool = True


#: Bodies of these are understood. Others are closed to keys whose caps would need it.
ROUTES = {
    "/v1/chat/completions": Route(("max_completion_tokens", "max_tokens"), priority=True),
    "/v1/completions": Route(("max_tokens",), default=16, priority=True),
    "/v1/responses": Route(("max_output_tokens",), priority=True),
    "/v1/messages": Route(("max_tokens",)),
    "/v1/messages/count_tokens": Route(),
    "/v1/embeddings": Route(priority=True),
    "/v1/responses/{id}/cancel": Route(model=False),
    "/tokenize": Route(),
    "/detokenize": Route(),
    "/pooling": Route(priority=True),
    "/classify": Route(priority=True),
    "/score": Route(priority=True),
    "/v1/score": Route(priority=True),
    "/rerank": Route(priority=True),
    "/v1/rerank": Route(priority=True),
    "/v2/rerank": Route(priority=True),
}


def check_model(body: Mapping[str, Any], caps: Caps) -> None:
    """Raises ApiError. A body without a model means the engine's own, which may be any."""
    model = body.get("model")
    if caps.models is not None and model not in caps.models:
        asked = f"model {model[:200]!r}" if isinstance(model, str) and model else "a request that names no model"
        _refuse("model", "model", f"{asked} is not allowed for this key; it may use {', '.join(caps.models)}")


def check_tokens(body: Mapping[str, Any], route: Route, cap: int) -> dict[str, int]:
    """The members that the body needs to keep within `cap` completion tokens over all its choices.

    Raises:
        ApiError: it asks for more, naming the field.
    """
    choices = _choices(body)
    each = cap // choices
    if each == 0:
        field = "n" if (body.get("n") or 1) > 1 else "best_of" if (body.get("best_of") or 1) > 1 else "prompt"
        _refuse("max_tokens", field, f"{choices} choices are more than this key's cap of {cap} completion tokens")
    asked = {name: value for name in _LIMITS if (value := integer(body, name)) is not None}
    for name, value in asked.items():
        if value < 0:
            raise ApiError(400, "invalid_value", f"{name}: must not be negative", name)
        if value > each:
            why = f" for each of {choices} choices" if choices > 1 else ""
            _refuse("max_tokens", name, f"{value}{why} is above this key's cap of {cap} completion tokens")
    if (route.default is not None and route.default <= each) or any(name in asked for name in route.limits):
        return {}
    return {route.limits[0]: each}


def check_priority(body: Mapping[str, Any], route: Route, headers: list[bytes], caps: Caps) -> dict[str, int]:
    """The member that the body needs for this key's best priority. Raises ApiError where it claims a better one."""
    claims = [("priority", integer(body, "priority"))]
    claims += [(PRIORITY_HEADER.decode(), as_number(value)) for value in headers]
    for name, value in claims:
        if value is not None and value < caps.priority:
            _refuse("priority", name, f"{value} is better than {caps.priority}, the best that this key may claim")
    if caps.priority > 0 and route.priority and body.get("priority") is None:
        return {"priority": caps.priority}
    return {}


def held_to(server: Capabilities, caps: Caps) -> Capabilities:
    """What the server can do for a key: no cache above the key's own cap."""
    return server if caps.max_kv_budget is None else replace(server, kv=server.kv.held_to(caps.max_kv_budget))


def resolve_for(thrift: Any, server: Capabilities, caps: Caps) -> dict[str, Any]:
    """`contract.resolve` within a key's profiles and methods.

    A request that names no method gets the server's default, or the first of the key's methods where that is not among
    them, or none at all. A lossy family wants a key that may use a lossy profile, too.

    Raises:
        ContractError: also `thrift_forbidden` for what the key may not ask for.
    """
    if caps.profiles is None and caps.methods is None:
        return resolve(thrift, server)
    granted = _narrowed(server, caps)
    _check_thrift(thrift, server, granted, caps)
    return resolve(thrift, granted)


def _narrowed(server: Capabilities, caps: Caps) -> Capabilities:
    methods = tuple(name for name in caps.methods if name in server.methods) if caps.methods else server.methods
    any_profile = caps.profiles is None or any(name != "off" for name in caps.profiles)
    method = server.method if server.method in methods else next(iter(methods), server.method)
    speculation = server.speculation and any_profile and bool(methods)
    lossy = {family: _narrowed_lossy(getattr(server, family), family, caps) for family in _LOSSY_NAMES}
    return replace(server, speculation=speculation, method=method, methods=methods, **lossy)


def _narrowed_lossy(terms: Any, family: str, caps: Caps) -> Any:
    """A family's `Terms` within a key's methods; what it names outside of them, `_check_lossy` has refused."""
    allowed = _lossy_methods(family, caps)
    outside = set(_LOSSY_NAMES[family]()) - set(allowed)
    missing = {**dict.fromkeys(outside, "not allowed for this key"), **terms.missing}
    granted = replace(terms, missing=missing)
    if terms.reason is not None or terms.method not in missing:
        return granted
    first = next((name for name in allowed if name not in missing), None)
    why = "no method that this key may use is available here"
    return replace(granted, reason=why) if first is None else replace(granted, method=first)


def _lossy_methods(family: str, caps: Caps) -> tuple[str, ...]:
    """The methods of a lossy family that a key may use."""
    if caps.profiles is not None and not LOSSY & set(caps.profiles):
        return ()
    known = _LOSSY_NAMES[family]()
    return known if caps.methods is None else tuple(name for name in caps.methods if name in known)


def _check_thrift(thrift: Any, server: Capabilities, granted: Capabilities, caps: Caps) -> None:
    """What is named must be allowed. What is wrong in other ways is for `resolve` to say."""
    if isinstance(thrift, str):
        if thrift in PROFILES and caps.profiles is not None and thrift not in caps.profiles:
            _forbid("thrift", f"profile {thrift!r}", caps.profiles)
        field, asked, wanted = "thrift", None, thrift in PROFILES and thrift != "off"
    else:
        speculation = thrift.get("speculation", "off") if isinstance(thrift, dict) else "off"
        field, wanted = "thrift.speculation", speculation != "off"
        asked = speculation
        if isinstance(speculation, dict):
            asked = speculation.get("method")
            field += ".method" if asked is not None else ""
    if wanted and server.speculation and not granted.speculation:
        _forbid(field, "speculation", ())
    if isinstance(asked, str) and asked in server.methods and asked not in granted.methods:
        _forbid(field, f"method {asked!r}", granted.methods)
    for family in _LOSSY_NAMES:
        if isinstance(thrift, dict) and isinstance(thrift.get(family), dict):
            _check_lossy(family, thrift[family], _lossy_methods(family, caps))


def _check_lossy(family: str, asked: dict[str, Any], allowed: tuple[str, ...]) -> None:
    method = asked.get("method")
    if not allowed:
        _forbid(f"thrift.{family}", f"the lossy family {family}", ())
    if isinstance(method, str) and method in _LOSSY_NAMES[family]() and method not in allowed:
        _forbid(f"thrift.{family}.method", f"method {method!r}", allowed)


def _forbid(field: str, what: str, allowed: tuple[str, ...]) -> NoReturn:
    why = f"{what} is not allowed for this key; it may use {', '.join(allowed) or 'off'}"
    raise ContractError("thrift_forbidden", field, why)


def _refuse(what: str, field: str, why: str) -> NoReturn:
    raise ApiError(403, f"{what}_not_allowed", f"{field}: {why}", field)


def _choices(body: Mapping[str, Any]) -> int:
    """Answers that the body asks for: `n`, for each of its prompts."""
    each = max(1, integer(body, "n") or 1, integer(body, "best_of") or 1)
    prompts = sum(map(_prompts, (body.get("prompt"), body.get("prompt_embeds"))))
    return each * max(1, prompts)


def _prompts(given: Any) -> int:
    """A text, a list of token ids, or a list of either."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return len(given)
    return 0 if given is None else 1


def integer(body: Mapping[str, Any], name: str) -> int | None:
    """A member that must be an integer; None where it is not there. Raises ApiError."""
    value = body.get(name)
    if value is None or type(value) is int:
        return value
    raise ApiError(400, "invalid_type", f"{name}: must be an integer", name)


def as_number(text: bytes) -> int | None:
    """As vLLM reads the header: what is no number is ignored."""
    try:
        return int(text.decode("latin-1"))
    except ValueError:
        return None
