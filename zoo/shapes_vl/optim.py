"""Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)  # pushes singular values towards 1; Jordan et al., "Muon", 2024


class Muon(Optimizer):  # type: ignore[misc]
    """Momentum whose update is made orthogonal, scaled to the size that an update of Adam has.

    torch's own does the iteration in bfloat16, which processors without that arithmetic emulate.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["speed"] = torch.zeros_like(weight)
                state["speed"].mul_(group["momentum"]).add_(weight.grad)
                ahead = weight.grad + group["momentum"] * state["speed"]
                size = 0.2 * max(weight.shape) ** 0.5
                weight.mul_(1 - 0.02 * group["lr"]).add_(orthogonal(ahead), alpha=-group["lr"] * size)


def orthogonal(matrix: Any, rounds: int = 5) -> Any:
    """Nearly the nearest matrix with orthonormal rows or columns (singular values between about 0.7 and 1.2)."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / (found.norm() + 1e-7)
    for _ in range(rounds):
        square = found @ found.T
        found = a * found + (b * square + c * square @ square) @ found
    return found.T if tall else found


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
    return [Muon(inner, 2 * rate), AdamW(groups, lr=rate, betas=(0.9, 0.98))]
