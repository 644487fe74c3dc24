"""The method table: what `thriftree methods` prints and ``GET /v1/thrift/methods`` answers."""

from __future__ import annotations

from typing import Any

from thriftree.plugins.speculative import registry
from thriftree.server.contract import Capabilities

_OFF = "this server was started without speculation (--thrift off)"


def table(speculation: bool = True) -> list[dict[str, Any]]:
    """One row per method, as the contract names its fields."""
    return [
        {
            "name": method.name,
            "family": method.family,
            "exact": method.exact,
            "available": speculation,
            "reason": None if speculation else _OFF,
            "default": method.default,
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
