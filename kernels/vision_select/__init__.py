"""Greedy choices among the rows of an image: far apart (max-min), or of the largest volume (DPP).

Rows are of length 1 (or 0), so that a product of two is their cosine. Of rows that tie, the first is taken. On a GPU
one Triton program takes all picks of an image, and nothing waits for the host.
"""

from __future__ import annotations

from torch import Tensor

from thriftree.kernels.vision_select import reference

__all__ = ["backend", "greedy_dpp", "max_min"]


def backend(device: str = "cpu") -> str:
    """What runs on `device`: ``torch`` or ``triton``."""
    return "triton" if device == "cuda" else "torch"


def max_min(unit: Tensor, k: int, first: int | None = None) -> Tensor:
    """Rows of which each is the farthest (1 - cosine) from its nearest predecessor.

    Args:
        unit: ``[N, D]`` rows of length 1 or 0. A row with NaN or inf counts as 0.
        k: how many, 0..N.
        first: the row to begin with; None: the one whose nearest neighbour is the farthest.

    Returns:
        ``[k]`` int64 in the order in which they were picked, no row twice.

    Raises:
        ValueError: `k` or `first` does not fit.
    """
    _check(unit, k)
    if first is not None and not 0 <= first < max(1, len(unit)):
        raise ValueError(f"first must be a row of {len(unit)}, not {first}")
    if backend(unit.device.type) == "triton" and k:
        from thriftree.kernels.vision_select import triton

        return triton.max_min(unit, k, first)
    return reference.max_min(unit, k, first)


def greedy_dpp(unit: Tensor, quality: Tensor | None, k: int) -> Tensor:
    """Rows of which each adds the most volume: greedy MAP of a DPP with kernel ``quality_i * cosine_ij * quality_j``.

    Args:
        unit: ``[N, D]`` rows of length 1 or 0. A row with NaN or inf counts as 0.
        quality: ``[N]``, not negative (None: all 1). NaN counts as 0.
        k: how many, 0..N. More than the rows span: the rest are the best by quality.

    Returns:
        ``[k]`` int64 in the order in which they were picked, no row twice.

    Raises:
        ValueError: `k` or `quality` does not fit.
    """
    _check(unit, k)
    if quality is not None and quality.shape != unit.shape[:1]:
        raise ValueError(f"quality must be [{len(unit)}], not {list(quality.shape)}")
    if backend(unit.device.type) == "triton" and k:
        from thriftree.kernels.vision_select import triton

        return triton.greedy_dpp(unit, quality, k)
    return reference.greedy_dpp(unit, quality, k)


def _check(unit: Tensor, k: int) -> None:
    if unit.ndim != 2 or not 0 <= k <= len(unit):
        raise ValueError(f"k must be 0..N of [N, D] rows, not {k} of {list(unit.shape)}")
