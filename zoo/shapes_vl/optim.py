"""Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW, Muon, Optimizer


def optimizers(modules: Iterable[Any], rate: float) -> list[Optimizer]:
    """Both, over all parameters; `rate` is AdamW's, Muon's is twice that."""
    inner: list[Any] = []
    matrices: list[Any] = []
    rest: list[Any] = []
    for module in modules:
        for name, weight in module.named_parameters():
            inside = weight.ndim == 2 and "embed" not in name and ("layers." in name or "linear_" in name)
            (inner if inside else matrices if weight.ndim > 1 else rest).append(weight)
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    muon = Muon(inner, lr=2 * rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, AdamW(groups, lr=rate, betas=(0.9, 0.98))]
