"""A transformers model whose attention is ours: what the probe and the benchmark look at, and change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.rows import Rope


@dataclass(frozen=True)
class Call:
    """One layer's attention in one forward pass. Keys and queries are rotated."""

    layer: int
    query: Tensor  # [B, H * G, T, D], the G query heads of a KV head beside each other
    key: Tensor  # [B, H, T, D]
    value: Tensor  # [B, H, T, D]
    scale: float
    window: int | None = None  # of a sliding-window layer: keys that a query sees, itself among them
    cap: float | None = None  # logits are ``cap * tanh(logits / cap)``


#: From a call to the attention's output, ``[B, H * G, T, D]``.
Attention = Callable[[Call], Tensor]

_NAME = "thriftree_hooked"
_active: list[Attention] = []


@contextmanager
def hooked(attention: Attention) -> Iterator[None]:
    """Within the block, models of `load` attend by this function (one thread, no nesting of forwards)."""
    _active.append(attention)
    try:
        yield
    finally:
        _active.pop()


def _dispatch(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    if not _active:
        raise RuntimeError("a hooked model runs inside `hooked` only")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = kwargs.get("sliding_window"), kwargs.get("softcap")
    out = _active[-1](Call(module.layer_idx, query, key, value, scale, window, cap))
    return out.transpose(1, 2).contiguous(), None


def load(model: str) -> Any:
    """The model (a folder or a hub id) in float32 with our attention.

    Raises:
        ValueError: its attention is not one that we can stand in for; the message says why.
    """
    from thriftree.zoo.cpu_wheels import repair

    repair()
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = AutoConfig.from_pretrained(model)
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(f"{model}: multi-head latent attention has no KV heads to tell apart")
    if getattr(config, "rope_parameters", None) is None:
        raise ValueError(f"{model}: no rotary position embedding in its config; only such models are supported")
    AttentionInterface.register(_NAME, _dispatch)
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation=_NAME)
    return made.eval()


def rope(model: Any) -> Rope | None:
    """How the model turns queries and keys; None if we cannot say (rotations that differ by layer or length)."""
    found = getattr(model.get_decoder(), "rotary_emb", None)
    frequencies = getattr(found, "inv_freq", None)
    if frequencies is None or getattr(found, "attention_scaling", 1.0) != 1.0:
        return None
    return Rope(frequencies.float())
