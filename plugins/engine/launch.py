"""Turns a profile into vLLM's own flags."""

from __future__ import annotations

import argparse
from typing import Any

from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.engine.register import PROPOSER


def configure(args: argparse.Namespace, speculation: dict[str, Any] | None) -> bool:
    """Put token-tree speculation on a `vllm serve` argument namespace.

    Args:
        args: parsed flags of `vllm serve`, changed in place.
        speculation: settings of `SpeculationOptions`; None: the profile wants no speculation.

    Returns:
        Whether trees are on. False as well where the operator chose another speculation with ``--speculative-config``.

    Raises:
        ValueError: a setting is unknown or out of range, or a flag excludes trees; the message names it.
    """
    if speculation is None:
        return False
    given = dict(args.speculative_config or {}) if isinstance(args.speculative_config, dict) else None
    if args.speculative_config and (given is None or given.get("model") != PROPOSER):
        return False
    extra = dict(args.additional_config or {}) if isinstance(args.additional_config, dict) else {}
    ours = dict(extra.get("thriftree") or {})
    ours["speculation"] = {**speculation, **dict(ours.get("speculation") or {})}
    extra["thriftree"] = ours
    options = SpeculationOptions.of(extra)
    if getattr(args, "async_scheduling", None):
        raise ValueError("--async-scheduling excludes token-tree speculation: drop it, or start with --thrift off")
    args.additional_config = extra
    args.speculative_config = {
        "method": "custom_class",
        "model": PROPOSER,
        "num_speculative_tokens": options.max_nodes,
        **(given or {}),
    }
    return True
