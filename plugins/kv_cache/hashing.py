"""Random numbers without a state: a number for each counter, the same whenever and wherever it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(x: int) -> int:
    return (x & 0xFFFFFFFF) - ((x & 0x80000000) << 1)


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B9, 0x7FEB352D, 0x846CA68B))


def mix(state: Tensor | int, counter: Tensor | int) -> Tensor:
    """A hash of both as int32 (broadcast). Chains: ``mix(mix(seed, layer), pos)``."""
    x = torch.as_tensor(counter).to(torch.int32) * _GOLDEN
    x = x ^ (_signed(state) if isinstance(state, int) else state)
    # A 32-bit finaliser: shifts and odd factors chosen so that every bit of x moves every bit of the result.
    x ^= (x >> 16) & 0xFFFF
    x *= _FIRST
    x ^= (x >> 15) & 0x1FFFF
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF
    return x


def uniform(state: Tensor) -> Tensor:
    """float32 inside (0, 1), never 0 or 1, of a hash."""
    return ((state & 0x7FFFFF).float() + 0.5) * 2.0**-23
