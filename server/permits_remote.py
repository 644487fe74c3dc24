"""A key's profiles and methods where the engine is another server, which resolves `thrift` by itself.

What it has and what it does by default is not known here. So a body's names are checked as text, and whatever the body
leaves to the engine's defaults is filled in from what the key may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from thriftree.plugins.kv_cache import registry as kv
from thriftree.plugins.vision import registry as vision
from thriftree.server.contract import KEYS, LOSSY, PROFILES
from thriftree.server.errors import ContractError
from thriftree.server.principal import Caps


def check_thrift(body: Mapping[str, Any], caps: Caps) -> dict[str, Any]:
    """The `thrift` member that the body needs to keep to the caps; empty where its own does.

    Raises:
        ContractError: `thrift_forbidden` for what the key may not ask for.
    """
    thrift = body.get("thrift")
    if isinstance(thrift, dict):
        kept = {family: _family(family, thrift.get(family), caps) for family in KEYS}
        return {} if all(thrift.get(family) == value for family, value in kept.items()) else {"thrift": thrift | kept}
    if thrift is not None and not isinstance(thrift, str):
        return {}  # the engine refuses it
    if thrift is not None and caps.profiles is not None and thrift not in caps.profiles:
        _forbid("thrift", f"profile {thrift[:64]!r}", caps.profiles)
    if thrift == "off" or (thrift is not None and caps.methods is None):
        return {}
    if caps.methods is None:
        return {"thrift": _profile(caps)}
    return {"thrift": {family: _family(family, None, caps) for family in KEYS}}


def _family(family: str, asked: Any, caps: Caps) -> Any:
    """What one family is to be; `asked`: what the body says, None for nothing."""
    field = f"thrift.{family}"
    speculates = caps.profiles is None or any(name != "off" for name in caps.profiles)
    lossless = family == "speculation"
    if asked is None:
        others = {*kv.names(), *vision.names()}
        method = next((name for name in caps.methods or () if name not in others), None)
        return {"method": method} if method is not None and speculates and lossless else _default(family, caps)
    if asked == "off":
        return asked
    if not speculates:
        _forbid(field, family, ())
    method = asked.get("method") if isinstance(asked, dict) else asked
    if caps.methods is not None and method not in caps.methods:
        _forbid(field, f"method {str(method)[:64]!r}", caps.methods)
    if not lossless and not _lossy(caps):
        _forbid(field, f"the lossy family {family}", ())
    return asked


def _default(family: str, caps: Caps) -> Any:
    """Without methods of its own to choose from, a key has what its profiles have."""
    speculates = caps.methods is None and _profile(caps) != "off"
    return "auto" if family == "speculation" and speculates else "off"


def _lossy(caps: Caps) -> bool:
    return caps.profiles is None or bool(LOSSY & set(caps.profiles))


def _profile(caps: Caps) -> str:
    """Of a request that names none: the one that changes no answer, if the key may use it."""
    allowed = caps.profiles or PROFILES
    return "exact" if "exact" in allowed else allowed[0]


def _forbid(field: str, what: str, allowed: tuple[str, ...]) -> NoReturn:
    why = f"{what} is not allowed for this key; it may use {', '.join(allowed) or 'off'}"
    raise ContractError("thrift_forbidden", field, why)
