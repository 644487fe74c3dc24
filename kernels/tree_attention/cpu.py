"""The C kernel behind ctypes. A `CpuPlan` is built once per step and shared by all layers."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from thriftree.kernels import build
from thriftree.kernels.tree_attention import layout

logger = logging.getLogger(__name__)
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

LIBRARY = build.Library(
    "tree_attention",
    sources=("tree_attention/cpu.c", "tree_attention/commit.c"),
    headers=("tree_attention/tile.h", "tree_attention/work.h", "tree_attention/gemm.h", "simd.h"),
)

_POINTERS = ("block_table", "row_start", "row_count", "ctx", "depth", "ancestors")
_STEP = ("table_stride", "table_width", "words")
_COUNTS = ("requests", "threads", "heads", "kv_heads", "dim", "block", "type", "window", "packed")
_STRIDES = (
    "q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "o_row", "o_head",
    "kc_block", "kc_head", "vc_block", "vc_head",
)  # fmt: skip


class _Plan(ctypes.Structure):
    """``struct plan`` of cpu.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in _POINTERS]
        + [(name, ctypes.c_int64) for name in _STEP]
        + [(name, ctypes.c_int32) for name in _COUNTS]
        + [("scale", ctypes.c_float), ("softcap", ctypes.c_float)]
        + [(name, ctypes.c_int64) for name in _STRIDES]
    )


@functools.cache
def library() -> ctypes.PyDLL | None:
    """The kernel, or None (with a warning, once) where it cannot be built."""
    try:
        # PyDLL keeps the interpreter lock: a call is shorter than one lock hand-over.
        loaded = ctypes.PyDLL(str(build.library(LIBRARY)))
    except (build.NoCompiler, OSError) as error:
        logger.warning("thriftree: tree attention falls back to torch (slower): %s", error)
        return None
    loaded.thriftree_attend.argtypes = [ctypes.c_void_p] * 9
    loaded.thriftree_attend.restype = ctypes.c_int
    loaded.thriftree_commit.argtypes = [ctypes.c_void_p]
    loaded.thriftree_commit.restype = None
    if not loaded.thriftree_parallel():
        logger.warning("thriftree: no OpenMP runtime in this process, tree attention runs on one thread")
    return loaded


def _check(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, out: Tensor, isa: str
) -> None:
    """Everything the kernel takes for granted; runs once per layer shape, not per call."""
    heads, kv_heads, dim, block = query.shape[1], key.shape[1], query.shape[2], key_cache.shape[2]
    tensors = {"key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache, "out": out}
    layout.check(isa, query.dtype, dim, block)
    for name, tensor in tensors.items():
        if tensor.dtype != query.dtype:
            raise ValueError(f"tree attention needs one dtype: {name} is {tensor.dtype}, not {query.dtype}")
        if tensor.stride(-1) != 1 or tensor.shape[-1] != dim:
            raise ValueError(f"{name}: last dimension must be contiguous and of size {dim}")
    if heads % kv_heads or key_cache.shape[1] != kv_heads:
        raise ValueError(f"{heads} query heads, {kv_heads} KV heads, cache of {key_cache.shape[1]} KV heads")
    if key_cache.stride(2) != dim or value_cache.stride(2) != dim:
        raise ValueError("a block of the cache must be contiguous per KV head")


class CpuPlan:
    """One step's requests and trees. Keeps its tensors alive; `run` is called once per layer."""

    def __init__(
        self,
        block_table: Tensor,
        row_start: Tensor,
        ctx_lens: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        row_count: Tensor | None = None,
        isa: str = "vec",
    ) -> None:
        loaded = library()
        assert loaded is not None
        self._attend: Callable[..., int] = loaded.thriftree_attend
        if row_count is None:
            row_count = row_start[1:] - row_start[:-1]
        ints = [t.to(torch.int32) for t in (block_table, row_start, row_count, ctx_lens, depth)]
        dense = [t if t.stride(-1) == 1 else t.contiguous() for t in ints]
        step = (*dense, ancestors.to(torch.int64).contiguous())
        self._alive = step
        self.requests = row_count.shape[0]
        plan = self._plan = _Plan()
        for name, tensor in zip(_POINTERS, step, strict=True):
            setattr(plan, name, tensor.data_ptr())
        plan.table_stride, plan.table_width, plan.words = step[0].stride(0), step[0].shape[1], step[5].shape[1]
        plan.requests, plan.threads = self.requests, torch.get_num_threads()
        self._address = ctypes.addressof(plan)
        self._key: object = None
        self._isa, plan.packed = isa, isa == "amx"

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        out: Tensor,
        scale: float,
        *,
        sliding_window: int = -1,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        alibi: Tensor | None = None,
    ) -> None:
        """Attention of one layer into `out`."""
        shape = (
            query.shape, query.stride(), key.stride(), value.stride(), out.stride(), key_cache.stride(),
            value_cache.stride(), query.dtype, scale, sliding_window, softcap,
        )  # fmt: skip
        if shape != self._key:
            self._shape_up(query, key, value, key_cache, value_cache, out, scale, sliding_window, softcap)
            self._key = shape
        if sinks is not None:
            sinks = sinks.float().contiguous()
        if alibi is not None:
            alibi = alibi.float().contiguous()
        failed = self._attend(
            self._address, query.data_ptr(), key.data_ptr(), value.data_ptr(), key_cache.data_ptr(),
            value_cache.data_ptr(), out.data_ptr(), None if sinks is None else sinks.data_ptr(),
            None if alibi is None else alibi.data_ptr(),
        )  # fmt: skip
        if failed:
            raise ValueError("a request's context exceeds its block table")

    def _shape_up(
        self, query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, out: Tensor,
        scale: float, window: int, softcap: float,
    ) -> None:  # fmt: skip
        _check(query, key, value, key_cache, value_cache, out, self._isa)
        plan = self._plan
        plan.heads, plan.dim = query.shape[1:]
        plan.kv_heads, plan.block, plan.type = key.shape[1], key_cache.shape[2], TYPES[query.dtype]
        plan.scale, plan.window, plan.softcap = scale, window, softcap
        strided = (query, key, value, out, key_cache, value_cache)
        for i, tensor in enumerate(strided):
            setattr(plan, _STRIDES[2 * i], tensor.stride(0))
            setattr(plan, _STRIDES[2 * i + 1], tensor.stride(1))
