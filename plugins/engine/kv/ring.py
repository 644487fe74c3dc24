"""The newest queries of a request, all layers, in a fixed place."""

from __future__ import annotations

import torch
from torch import Tensor


class QueryRing:
    """Holds the last `window` query rows of ``L`` layers; the row of position `p` is in slot ``p % window``."""

    def __init__(self, layers: int, window: int, heads: int, dim: int, dtype: torch.dtype) -> None:
        self._rows = torch.zeros(layers, window, heads, dim, dtype=dtype)
        self.window = window
        self.count = 0  # rows that are there
        self.unseen = 0  # of them, rows that nobody has weighed yet (for methods that add up)

    def append(self, rows: Tensor, position: int) -> None:
        """``rows [L, n, heads, dim]`` of the positions from `position` on; only the newest `window` stay."""
        extra = rows.shape[1] - self.window
        if extra > 0:
            rows, position = rows[:, extra:], position + extra
        slots = torch.arange(position, position + rows.shape[1]) % self.window
        self._rows[:, slots] = rows
        self.count = min(self.window, self.count + rows.shape[1])
        self.unseen = min(self.window, self.unseen + rows.shape[1])

    def last(self, length: int) -> Tensor:
        """``[L, heads, D]`` the newest, where `length` is the number of positions so far."""
        return self._rows[:, (length - 1) % self.window].clone()

    def newest(self, layer: int, length: int, count: int, kv_heads: int) -> Tensor:
        """``[H, G, count, D]`` float32, oldest first, where `length` is the number of positions so far."""
        slots = torch.arange(length - count, length) % self.window
        rows = self._rows[layer, slots].float()
        return rows.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
