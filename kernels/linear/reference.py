"""The truth: each row on its own, summed in float64."""

from __future__ import annotations

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., k] . weight [n, k]^T + bias [n]`` in float64."""
    y = x.double() @ weight.double().t()
    return y if bias is None else y + bias.double()
