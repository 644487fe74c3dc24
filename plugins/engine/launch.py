"""Turns a profile into vLLM's own flags."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from thriftree.plugins.engine.kv.options import KVOptions
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.engine.register import PROPOSER
from thriftree.plugins.engine.vision.options import VisionOptions
from thriftree.plugins.kv_cache.request import Terms
from thriftree.plugins.vision.request import Terms as VisionTerms


def configure(
    args: argparse.Namespace,
    speculation: dict[str, Any] | None,
    kv: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> bool:
    """Put token-tree speculation, KV compression and visual-token pruning on a `vllm serve` argument namespace.

    Args:
        args: parsed flags of `vllm serve`, changed in place.
        speculation: settings of `SpeculationOptions`; None: the profile wants no speculation.
        kv: settings of `KVOptions`; None: no compression, unless ``--additional-config`` itself asks for it.
        vision: settings of `VisionOptions`; None: no pruning, likewise.

    Returns:
        Whether trees are on. False as well where the operator chose another speculation with ``--speculative-config``,
        and on a GPU, which trees are not for yet.

    Raises:
        ValueError: a setting is unknown or out of range, or a flag excludes trees; the message names it.
    """
    if vision is not None:
        args.additional_config = _with(args, "vision", vision)
    if not _on_cpu():  # trees are there by default: they step aside, `--speculative-config` with ours is refused
        speculation = None
    if VisionOptions.of(_extra(args)).late_layer is not None:  # as does all else that is
        speculation, kv = None, None if kv is None or kv["compression"] == "auto" else kv
    if kv is not None:
        args.additional_config = _with(args, "kv", kv)
    KVOptions.of(_extra(args))
    return _speculate(args, speculation)


def kv_terms(vllm_config: Any, profile: str) -> Terms:
    """What requests may do with their caches on this engine; `profile`: of requests that name none."""
    from thriftree.plugins.engine.kv.support import terms_of

    return replace(terms_of(vllm_config), profile=profile)


def vision_terms(vllm_config: Any, profile: str) -> VisionTerms:
    """What requests may do with their images on this engine; `profile`: of requests that name none."""
    from thriftree.plugins.engine.vision.support import terms_of

    return terms_of(vllm_config, profile)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _extra(args: argparse.Namespace) -> dict[str, Any]:
    return dict(args.additional_config or {}) if isinstance(args.additional_config, dict) else {}


def _with(args: argparse.Namespace, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """The additional config with our options in it; what the operator's own says of them wins."""
    extra = _extra(args)
    ours = dict(extra.get("thriftree") or {})
    return {**extra, "thriftree": {**ours, part: {**options, **dict(ours.get(part) or {})}}}


def _speculate(args: argparse.Namespace, speculation: dict[str, Any] | None) -> bool:
    if speculation is None:
        return False
    given = dict(args.speculative_config or {}) if isinstance(args.speculative_config, dict) else None
    if args.speculative_config and (given is None or given.get("model") != PROPOSER):
        return False
    extra = _with(args, "speculation", speculation)
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
