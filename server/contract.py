"""The `thrift` object of a request: what may be asked, and what it resolves to on this server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from thriftree.plugins.kv_cache import request as kv_request
from thriftree.plugins.refused import Refused
from thriftree.plugins.vision import request as vision_request
from thriftree.server.errors import ContractError

PROFILES = ("off", "exact", "balanced", "max")
#: Of these, those that may change answers.
LOSSY = frozenset(("balanced", "max"))
KEYS = ("speculation", "kv", "vision")
OFF = (
    "this server runs without token-tree speculation (--thrift off, --vision-late-layer, another --speculative-config, "
    "or a GPU)"
)

#: Checks a method's own parameters; raises ValueError("<parameter>: why").
Checker = Callable[[str, Mapping[str, Any]], object]


@dataclass(frozen=True)
class Capabilities:
    """What this server can do and how far a request may go."""

    speculation: bool
    method: str = "auto"
    methods: tuple[str, ...] = ()
    max_nodes: int = 16
    check: Checker = lambda method, parameters: None
    kv: kv_request.Terms = field(default_factory=kv_request.Terms)
    vision: vision_request.Terms = field(default_factory=vision_request.Terms)


def resolve(thrift: Any, server: Capabilities) -> dict[str, Any]:
    """A validated contract for the engine: ``{"speculation": "off" | {...}, "kv": ..., "vision": ...}``, all filled in.

    `thrift` is the value from the body, or None for "not there".

    Raises:
        ContractError: with the field's full name.
    """
    if thrift is None:
        return {"speculation": _default(server), **_lossy({}, server)}
    if isinstance(thrift, str):
        return {
            "speculation": _profile(thrift, server),
            "kv": kv_request.named(thrift, server.kv),
            "vision": vision_request.named(thrift, server.vision),
        }
    if not isinstance(thrift, dict):
        _invalid("thrift", f"must be an object or one of {_listed(PROFILES)}")
    for key in thrift:
        if key not in KEYS:
            _invalid(f"thrift.{key}", f"unknown; expected {_listed(KEYS)}")
    return {
        "speculation": _speculation(thrift["speculation"], server) if "speculation" in thrift else _default(server),
        **_lossy(thrift, server),
    }


def method_of(contract: Mapping[str, Any], family: str = "speculation") -> str | None:
    """The method of a family in force under a resolved contract."""
    chosen = contract[family]
    return None if chosen == "off" else str(chosen["method"])


def _default(server: Capabilities) -> Any:
    return {"method": server.method, "max_nodes": server.max_nodes} if server.speculation else "off"


def _profile(name: str, server: Capabilities) -> Any:
    if name == "off":
        return "off"
    if name not in PROFILES:
        _invalid("thrift", f"unknown profile {name!r}; expected {_listed(PROFILES)} or an object")
    if not server.speculation and server.kv.reason is not None and server.vision.reason is not None:
        _unsupported("thrift", OFF)  # the server has nothing that a profile is made of
    return _default(server)  # balanced and max add what lossy families do, and leave this one as it is


def _speculation(asked: Any, server: Capabilities) -> Any:
    field = "thrift.speculation"
    if asked == "off":
        return "off"
    if asked != "auto" and not isinstance(asked, dict):
        _invalid(field, 'must be "auto", "off" or an object {"method": ..., "max_nodes": ...}')
    if not server.speculation:
        _unsupported(field, OFF)
    if asked == "auto":
        return {"method": "auto", "max_nodes": server.max_nodes}
    method = asked.get("method", server.method)
    if not isinstance(method, str) or method not in server.methods:
        _invalid(f"{field}.method", f"unknown method {method!r}; expected {_listed(server.methods)}")
    nodes = asked.get("max_nodes", server.max_nodes)
    if type(nodes) is not int or nodes < 1:
        _invalid(f"{field}.max_nodes", f"must be an integer from 1 to {server.max_nodes}")
    if nodes > server.max_nodes:
        why = f"{nodes} is above this server's cap of {server.max_nodes} (--speculation-max-nodes)"
        raise ContractError("thrift_forbidden", f"{field}.max_nodes", why)
    own = {key: value for key, value in asked.items() if key not in ("method", "max_nodes")}
    try:
        if own:  # the check reads the method's schema, which costs more than all the rest
            server.check(method, own)
    except ValueError as error:
        name, _, why = str(error).partition(": ")
        _invalid(f"{field}.{name}", why or "not valid")
    return {"method": method, "max_nodes": nodes, **own}


def _lossy(thrift: Mapping[str, Any], server: Capabilities) -> dict[str, Any]:
    """The families that may change answers."""
    kv, vision = server.kv, server.vision
    try:
        return {
            "kv": kv_request.checked(thrift["kv"], kv) if "kv" in thrift else kv_request.default(kv),
            "vision": (
                vision_request.checked(thrift["vision"], vision)
                if "vision" in thrift
                else vision_request.default(vision)
            ),
        }
    except Refused as error:
        raise ContractError(error.code, f"thrift.{error.field}", error.why) from None


def _invalid(field: str, why: str) -> NoReturn:
    raise ContractError("thrift_invalid", field, why)


def _unsupported(field: str, why: str) -> NoReturn:
    raise ContractError("thrift_unsupported", field, why)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
