"""The C kernels behind ctypes. What a cache's layout comes to is worked out once per shape."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from thriftree.kernels import build
from thriftree.kernels.kv_rows import grid

logger = logging.getLogger(__name__)
LIBRARY = build.Library(
    "kv_rows",
    sources=("kv_rows/cells.c", "kv_rows/scores.c"),
    headers=("kv_rows/turn.h", "tree_attention/gemm.h", "simd.h"),
)
_STRIDES = ("block", "head", "token_outer", "token_inner", "outer", "inner")


class Side(ctypes.Structure):
    """``struct side`` of cells.c."""

    _fields_ = (
        [("caches", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in _STRIDES]
        + [(name, ctypes.c_int32) for name in ("tokens", "outers", "inners", "unit")]
    )


class _Move(ctypes.Structure):
    """``struct move`` of cells.c."""

    _fields_ = (
        [("sides", Side * 2)]
        + [(name, ctypes.c_void_p) for name in ("from_", "to", "offsets")]
        + [("cells", ctypes.c_int64)]
        + [(name, ctypes.c_int32) for name in ("layers", "heads", "rows", "threads")]
    )


class _Read(ctypes.Structure):
    """``struct read`` of cells.c."""

    _fields_ = (
        [("side", Side), ("table", ctypes.c_void_p), ("out", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("width", "count", "blocks")]
        + [(name, ctypes.c_int32) for name in ("lines", "heads", "rows", "threads")]
    )


@functools.cache
def library() -> ctypes.PyDLL | None:
    """The kernels, or None (with a warning, once) where they cannot be built."""
    try:
        loaded = ctypes.PyDLL(str(build.library(LIBRARY)))
    except (build.NoCompiler, OSError) as error:
        logger.warning("thriftree: cached rows are read and moved by torch (slower): %s", error)
        return None
    loaded.thriftree_move.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    for name in ("thriftree_read", "thriftree_sums_scratch", "thriftree_column_sums"):
        getattr(loaded, name).argtypes = [ctypes.c_void_p]
    loaded.thriftree_sums_scratch.restype = ctypes.c_int64
    loaded.thriftree_column_sums.restype = None
    return loaded


def side(cache: Tensor, keys: bool, isa: str) -> Side:
    """The layout of one layer's keys or values, without its address."""
    view, size = grid.by_token(cache, keys, isa), cache.element_size()
    made = Side()
    for name, stride in zip(_STRIDES, view.stride(), strict=True):
        setattr(made, name, stride * size)
    made.tokens, made.unit = view.shape[3], size
    levels = [(n, stride * size) for n, stride in zip(view.shape[4:], view.stride()[4:], strict=True) if n > 1]
    if levels and levels[-1][1] == size:  # channels that follow each other are one piece
        made.unit *= levels.pop()[0]
    (made.outers, made.outer), (made.inners, made.inner) = [(1, 0)] * (2 - len(levels)) + levels
    return made


@functools.lru_cache(maxsize=64)
def _reader(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, keys: bool, isa: str
) -> tuple[Side, int, int, int]:
    cache = torch.empty(0, dtype=dtype, device="meta").as_strided(shape, stride)
    return side(cache, keys, isa), shape[0] * shape[1], shape[1], shape[2]


def read(cache: Tensor, table: Tensor, rows: int, *, keys: bool, isa: str) -> Tensor:
    """See `thriftree.kernels.kv_rows.read`."""
    loaded = library()
    assert loaded is not None
    table = table.to(torch.int64).contiguous()
    out = torch.empty(table.shape[0], rows, cache.shape[3], dtype=cache.dtype)
    where = ctypes.c_void_p(cache.data_ptr())
    r = _Read(*_reader(cache.shape, cache.stride(), cache.dtype, keys, isa)[:1])
    _, r.blocks, r.heads, r.rows = _reader(cache.shape, cache.stride(), cache.dtype, keys, isa)
    r.side.caches = ctypes.addressof(where)
    r.table, r.out = table.data_ptr(), out.data_ptr()
    r.lines, r.width = table.shape
    r.count, r.threads = rows, torch.get_num_threads()
    if failed := loaded.thriftree_read(ctypes.addressof(r)):
        raise ValueError("the table has too few blocks" if failed == 1 else "the table names a block out of the cache")
    return out


class Mover:
    """See `thriftree.kernels.kv_rows.Mover`."""

    def __init__(self, key_caches: Sequence[Tensor], value_caches: Sequence[Tensor], isa: str) -> None:
        self._caches = (list(key_caches), list(value_caches))
        self._library = library()
        array = ctypes.c_void_p * len(key_caches)
        self._pointers = [array(*(t.data_ptr() for t in half)) for half in self._caches]
        m = self._move = _Move()
        for i, (half, pointers) in enumerate(zip(self._caches, self._pointers, strict=True)):
            m.sides[i] = side(half[0], i == 0, isa)
            m.sides[i].caches = ctypes.addressof(pointers)
        blocks, m.heads, m.rows, _ = key_caches[0].shape
        m.layers, self._limit = len(key_caches), blocks * m.heads * m.rows

    def __call__(self, sources: Tensor, destinations: Tensor, offsets: Tensor) -> None:
        assert self._library is not None
        m = self._move
        sources, destinations, offsets = (t.to(torch.int64).contiguous() for t in (sources, destinations, offsets))
        m.from_, m.to, m.offsets = sources.data_ptr(), destinations.data_ptr(), offsets.data_ptr()
        m.cells, m.threads = sources.shape[0], torch.get_num_threads()
        failed = self._library.thriftree_move(ctypes.addressof(m), self._limit)
        if failed:
            raise ValueError("offsets must rise from 0 to the cells" if failed == 1 else "a cell is out of the cache")
