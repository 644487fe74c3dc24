"""Turns a profile into vLLM's own flags."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
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
    late = VisionOptions.of(_extra(args)).late_layer
    if late is not None:  # what is there by default steps aside
        _nobody_insists(speculation, f"--vision-late-layer {late}")
        speculation, kv = None, None if kv is None or kv["compression"] == "auto" else kv
    if not _on_cpu():
        _nobody_insists(speculation, "a GPU: they are for vLLM's CPU engine")
        speculation = None
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


def _nobody_insists(speculation: dict[str, Any] | None, why: str) -> None:
    """Raise ValueError naming what an operator has set of trees: where it cannot be, it is not ignored."""
    ours = asdict(SpeculationOptions())
    set_by_hand = [name for name, value in (speculation or {}).items() if value != ours.get(name, value)]
    if set_by_hand:
        flags = ", ".join(f"--speculation-{name.replace('_', '-')}" for name in set_by_hand)
        raise ValueError(f"{flags}: token trees do not go together with {why}")


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
