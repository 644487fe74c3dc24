"""The method table: what `thriftree methods` prints and ``GET /v1/thrift/methods`` answers."""

from __future__ import annotations

from typing import Any

from thriftree.plugins.kv_cache import registry as kv
from thriftree.plugins.kv_cache import request as kv_request
from thriftree.plugins.kv_cache.profiles import PROFILES as KV_PROFILES
from thriftree.plugins.speculative import registry
from thriftree.plugins.vision import registry as vision
from thriftree.plugins.vision import request as vision_request
from thriftree.plugins.vision.profiles import PROFILES as VISION_PROFILES
from thriftree.server.contract import OFF, Capabilities

PROFILES_NOTE = "profiles: off = nothing; exact = speculation auto, changes no answer; " + "; ".join(
    f"{name} = exact, and KV: {profile.why}; images: {VISION_PROFILES[name].why}"
    for name, profile in KV_PROFILES.items()
)

SHARED_NOTE = (
    f"all methods of speculation take max_nodes, those of kv {', '.join(kv_request.SHARED[1:])}, "
    f"those of vision {', '.join(vision_request.SHARED[1:])}"
)


def table(server: Capabilities | None = None) -> list[dict[str, Any]]:
    """One row per method, as the contract names its fields; without a server: what this release has."""
    return [*_speculation(server), *_kv(server), *_vision(server)]


def _speculation(server: Capabilities | None) -> list[dict[str, Any]]:
    reason = None if server is None or server.speculation else OFF
    default = registry.DEFAULT_METHOD if server is None else server.method
    return [_row(method, reason, default, method.parameters) for method in map(registry.describe, registry.names())]


def _kv(server: Capabilities | None) -> list[dict[str, Any]]:
    terms = server.kv if server is not None else kv_request.Terms(reason=None)
    return [
        _row(method, terms.reason or terms.missing.get(method.name), terms.method, kv_request.parameters(method, terms))
        for method in map(kv.describe, kv.names())
    ]


def _vision(server: Capabilities | None) -> list[dict[str, Any]]:
    terms = server.vision if server is not None else vision_request.Terms(reason=None)
    return [
        _row(
            method,
            terms.reason or terms.missing.get(method.name),
            terms.method,
            vision_request.parameters(method, terms),
        )
        for method in map(vision.describe, vision.names())
    ]


def _row(method: Any, reason: str | None, default: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": method.name,
        "family": method.family,
        "exact": method.exact,
        "available": reason is None,
        "reason": reason,
        "default": method.name == default,
        "summary": method.summary,
        "parameters": parameters,
        "paper": method.paper,
    }


def capabilities(
    speculation: bool,
    method: str,
    max_nodes: int,
    kv: kv_request.Terms | None = None,
    vision: vision_request.Terms | None = None,
) -> Capabilities:
    """What the contract layer may grant on this server; without `kv` no compression, without `vision` no pruning."""
    return Capabilities(
        speculation=speculation,
        method=method,
        methods=registry.names(),
        max_nodes=max_nodes,
        check=registry.configure,
        kv=kv or kv_request.Terms(),
        vision=vision or vision_request.Terms(),
    )
