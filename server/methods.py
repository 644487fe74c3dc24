"""The method table: what `thriftree methods` prints and ``GET /v1/thrift/methods`` answers."""

from __future__ import annotations

from typing import Any

from thriftree.plugins.speculative import registry
from thriftree.server.contract import OFF, Capabilities

PROFILES_NOTE = (
    "profiles: off = no speculation; exact = auto, changes no answer; balanced and max behave as exact in this "
    "release (their KV and vision methods are not built yet)"
)


def table(server: Capabilities | None = None) -> list[dict[str, Any]]:
    """One row per method, as the contract names its fields; without a server: what this release has."""
    speculation = server is None or server.speculation
    default = registry.DEFAULT_METHOD if server is None else server.method
    return [
        {
            "name": method.name,
            "family": method.family,
            "exact": method.exact,
            "available": speculation,
            "reason": None if speculation else OFF,
            "default": method.name == default,
            "summary": method.summary,
            "parameters": method.parameters,
            "paper": method.paper,
        }
        for method in map(registry.describe, registry.names())
    ]


def capabilities(speculation: bool, method: str, max_nodes: int) -> Capabilities:
    """What the contract layer may grant on this server."""
    return Capabilities(
        speculation=speculation,
        method=method,
        methods=registry.names(),
        max_nodes=max_nodes,
        check=registry.configure,
    )
