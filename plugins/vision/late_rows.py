"""Which visual tokens of a prompt go on through the late layers, and where the rest then stands. No engine in here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftree.plugins.kv_cache.hashing import mix, uniform
from thriftree.plugins.vision.base import best, kept
from thriftree.plugins.vision.late import Late
from thriftree.plugins.vision.stride import spaced


def staying(late: Late, visual: int, last: bool) -> int:
    """How many of `visual` tokens go on. `last`: one of them ends the prompt; the answer begins there, so it stays."""
    count = kept(visual, late.keep, None) if late.keep else 0
    return max(count, int(last))


def chosen(late: Late, visual: int, last: bool, seed: int = 0, scores: Tensor | None = None) -> NDArray[np.int64]:
    """Which of them: ``[staying]`` indices from 0 to `visual` - 1, ascending.

    Args:
        seed: of the prompt's images, for `random`.
        scores: ``[visual]``, the highest stay, of equal ones the first; `attention` needs them.
    """
    among, count = visual - int(last), staying(late, visual, last) - int(last)
    if late.method == "attention":
        assert scores is not None
        picked = best(scores[:among], count)
    elif late.method == "random":
        picked = best(uniform(mix(seed, torch.arange(among))), count)
    else:
        picked = spaced(among, count)
    found: NDArray[np.int64] = picked.cpu().numpy().astype(np.int64)
    return np.append(found, among) if last else found


@dataclass(frozen=True)
class Gone:
    """Positions of a sequence that the late layers do not have. What is behind the prompt is all there."""

    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # ascending

    def __len__(self) -> int:
        return len(self.positions)

    def length(self, tokens: int) -> int:
        """What the first `tokens` positions come to in the late layers: also the place of position `tokens` there."""
        return tokens - int(np.searchsorted(self.positions, tokens))

    def stay(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions of ``start..stop - 1`` that the late layers have."""
        low, high = np.searchsorted(self.positions, (start, stop))
        if low == high:
            return np.arange(start, stop)
        there = np.ones(stop - start, dtype=bool)
        there[self.positions[low:high] - start] = False
        return np.nonzero(there)[0] + start
