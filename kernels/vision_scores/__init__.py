"""What a layer of a vision tower says of its patches, read off its queries and keys; no attention matrix is kept.

Sequences (images, tiles) lie one behind the other in ``[T, H, D]``; `starts` are the ``n + 1`` offsets at which they
begin and end. With `cls` the first row of each is its CLS token, which the answers leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from thriftree.kernels.vision_scores import reference

__all__ = ["Reading", "backend", "column_sums", "read"]

Reading = Literal["cls", "cls_logits", "received", "global", "keys"]
Reduce = Callable[[Tensor], Tensor]


def backend(device: str = "cpu") -> str:
    """What runs on `device`: ``torch`` or ``triton``."""
    return "triton" if device == "cuda" else "torch"


def column_sums(
    q: Tensor,
    k: Tensor,
    starts: Sequence[int],
    scale: float,
    *,
    rows: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Attention probabilities within each sequence, added up over heads and query rows.

    Args:
        q, k: ``[T, H, D]``, of any strides and one dtype.
        starts: offsets of the sequences, from 0 to T, ascending.
        scale: of the logits.
        rows: only the first so many query rows of each sequence count.
        weights: ``[T]`` float32 of each query row (None: 1). Rows of weight 0 cost little.

    Returns:
        ``[T]`` float32.

    Raises:
        ValueError: shapes or offsets that do not fit.
    """
    lengths = [end - start for start, end in pairwise(starts)]
    if (
        q.shape != k.shape
        or q.dtype != k.dtype
        or q.ndim != 3
        or (weights is not None and weights.shape != q.shape[:1])
    ):
        raise ValueError(f"queries {q.dtype} {list(q.shape)}, keys {k.dtype} {list(k.shape)} or weights do not fit")
    if not starts or starts[0] != 0 or starts[-1] != len(q) or min(lengths, default=0) < 0:
        raise ValueError(f"sequences must go from 0 to {len(q)}: {list(starts)}")
    if not q.numel():
        return torch.zeros(len(q), device=q.device)
    if backend(q.device.type) == "triton":
        from thriftree.kernels.vision_scores import triton

        return triton.column_sums(q, k, starts, scale, rows=rows, weights=weights)
    return reference.column_sums(q, k, starts, scale, rows=rows, weights=weights)


def read(
    reading: Reading,
    q: Tensor,
    k: Tensor,
    starts: Sequence[int],
    scale: float,
    *,
    cls: bool = False,
    threshold: float = 0.0,
    heads: int | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """One reading of one layer, a mean over its heads, for every patch.

    Args:
        reading: ``cls``: attention of the CLS token to each patch (without CLS: ``received``); ``cls_logits``: the same
            before the softmax (without CLS: of the mean query); ``received``: the mean attention that a patch gets from
            all rows; ``global``: the mean attention that it gets from the patches which themselves receive over
            `threshold` times their mean (none does: from all rows); ``keys``: the keys.
        q, k, starts, scale: as in `column_sums`. `q` is not used for keys.
        heads: of the layer; more than `q` has where other ranks hold the rest.
        reduce: adds up what the ranks have, every rank getting the same sum. Called as often on every rank.

    Returns:
        ``[N]`` float32, ``keys``: ``[N, D]``; N is T without the CLS rows.
    """
    ranks, total = reduce or _same, heads or q.shape[1]
    if reading == "keys":
        return _patches(ranks(k.float().sum(1)), starts, cls) / total
    if reading == "cls_logits":
        return _patches(ranks(reference.summary_logits(q, k, starts, scale, cls)), starts, cls) / total
    first = 1 if cls and reading == "cls" else None
    received = ranks(column_sums(q, k, starts, scale, rows=first)) / total
    if first is None:
        received = received / _spread([end - start for start, end in pairwise(starts)], q.device)
    if reading == "global":
        weights, even = _central(received, starts, cls, threshold)
        if reduce is None and q.device.type == "cpu" and bool(even):  # elsewhere looking costs a wait
            return _patches(received, starts, cls)
        received = ranks(column_sums(q, k, starts, scale, weights=weights)) / total
    return _patches(received, starts, cls)


def _same(values: Tensor) -> Tensor:
    return values


def _spread(lengths: list[int], device: torch.device) -> Tensor:
    """``[T]``: of each row, the length of its sequence."""
    each = torch.tensor(lengths, dtype=torch.int64)
    return each.repeat_interleave(each).to(device, non_blocking=True)


def _central(received: Tensor, starts: Sequence[int], cls: bool, threshold: float) -> tuple[Tensor, Tensor]:
    """``[T]`` weights, 1 in all in each sequence, of the patches that receive more than `threshold` times the mean.

    And whether no patch of any sequence does: then all rows weigh the same.
    """
    weights, even = torch.empty_like(received), torch.ones((), dtype=torch.bool, device=received.device)
    for start, end in pairwise(starts):
        mine = received[start:end].clone()
        mine[:cls] = -torch.inf
        chosen = (mine > threshold * mine[cls:].mean()).float()
        some = chosen.any()
        chosen = torch.where(some, chosen, torch.ones_like(chosen))
        weights[start:end] = chosen / chosen.sum()
        even &= ~some
    return weights, even


def _patches(values: Tensor, starts: Sequence[int], cls: bool) -> Tensor:
    if not cls:
        return values
    parts = [values[start + 1 : end] for start, end in pairwise(starts)]
    return torch.cat(parts) if parts else values
