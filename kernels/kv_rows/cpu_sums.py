"""Column sums of attention by the C kernel."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from thriftree.kernels.kv_rows import cpu

TILE = 64
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_STRIDES = ("q_head", "q_group", "q_row", "k_head", "k_row")


class _Sums(ctypes.Structure):
    """``struct sums`` of scores.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("q", "k", "pos", "q_pos", "parts", "scratch")]
        + [(name, ctypes.c_int64) for name in _STRIDES]
        + [(n, ctypes.c_int32) for n in ("heads", "group", "queries", "rows", "dim", "type", "threads", "tiles")]
        + [("scale", ctypes.c_float)]
    )


def column_sums(q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float) -> Tensor:
    """See `thriftree.kernels.kv_rows.column_sums`; `q` and `k` of one of `TYPES`."""
    loaded = cpu.library()
    assert loaded is not None
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    pos, q_pos = (t.to(torch.int64).contiguous() for t in (pos, q_pos))
    c = _Sums(*(t.data_ptr() for t in (q, k, pos, q_pos)))
    for name, stride in zip(_STRIDES, (*q.stride()[:3], *k.stride()[:2]), strict=True):
        setattr(c, name, stride)
    c.heads, c.group, c.queries, c.dim = q.shape
    c.rows, c.type, c.scale = k.shape[1], TYPES[q.dtype], scale
    c.threads, c.tiles = torch.get_num_threads(), -(-c.rows // TILE)
    parts = torch.zeros(c.threads, c.heads, c.tiles * TILE)
    scratch = torch.empty(c.threads, loaded.thriftree_sums_scratch(ctypes.addressof(c)))
    c.parts, c.scratch = parts.data_ptr(), scratch.data_ptr()
    loaded.thriftree_column_sums(ctypes.addressof(c))
    return (parts.sum(0) if c.threads > 1 else parts[0])[:, : c.rows]
