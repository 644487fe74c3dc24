"""Commit of accepted rows: keys and values go from the step's tensors to their slots, all layers at once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from thriftree.kernels.tree_attention import cpu, layout

_ARRAYS = ("keys", "values", "key_caches", "value_caches")
_STRIDES = ("k_row", "k_head", "v_row", "v_head", "kc_block", "kc_head", "vc_block", "vc_head")
_COUNTS = ("layers", "count", "kv_heads", "dim", "block", "elem", "threads", "packed")


class _Commit(ctypes.Structure):
    """``struct commit`` of commit.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in (*_ARRAYS, "rows", "slots")]
        + [(name, ctypes.c_int64) for name in _STRIDES]
        + [(name, ctypes.c_int32) for name in _COUNTS]
    )


def _same(tensors: Sequence[Tensor], what: str) -> None:
    first = tensors[0]
    for tensor in tensors:
        if (tensor.shape, tensor.stride(), tensor.dtype) != (first.shape, first.stride(), first.dtype):
            raise ValueError(f"{what} of the layers must have one shape, stride and dtype")


class Committer:
    """The caches of the layers that share slots (one KV cache group); built once, called after every walk."""

    def __init__(self, key_caches: Sequence[Tensor], value_caches: Sequence[Tensor], isa: str = "vec") -> None:
        _same(key_caches, "key caches")
        _same(value_caches, "value caches")
        self._caches = (list(key_caches), list(value_caches))
        self._library = cpu.library()
        self._array = ctypes.c_void_p * len(key_caches)
        first = key_caches[0]
        c = self._commit = _Commit()
        self._pointers = [self._array(*(t.data_ptr() for t in side)) for side in self._caches]
        c.key_caches, c.value_caches = (ctypes.addressof(p) for p in self._pointers)
        c.kc_block, c.kc_head = first.stride()[:2]
        c.vc_block, c.vc_head = value_caches[0].stride()[:2]
        c.layers, c.kv_heads, c.block, c.dim = len(key_caches), *first.shape[1:]
        c.elem, c.packed = first.element_size(), isa == "amx"
        self._isa = isa
        layout.check(isa, first.dtype, c.dim, c.block)

    def __call__(self, keys: Sequence[Tensor], values: Sequence[Tensor], rows: Tensor, slots: Tensor) -> None:
        """Copy ``keys[layer][rows[i]]`` and the value to slot ``slots[i]`` of every layer (-1: skip).

        Args:
            keys, values: one ``[R, kv_heads, dim]`` per layer.
            rows: ``[n]``, rows of the step.
            slots: ``[n]``, block times block size plus offset.
        """
        if self._library is None:
            return self._slowly(keys, values, rows, slots)
        _same(keys, "keys")
        _same(values, "values")
        key, value, c = keys[0], values[0], self._commit
        if len(keys) != c.layers or len(values) != c.layers or key.dtype != self._caches[0][0].dtype:
            raise ValueError(f"{c.layers} layers of {self._caches[0][0].dtype} expected")
        if key.stride(2) != 1 or value.stride(2) != 1 or key.shape[1:] != (c.kv_heads, c.dim):
            raise ValueError(f"keys and values must be [rows, {c.kv_heads}, {c.dim}], last dimension contiguous")
        rows, slots = rows.to(torch.int32).contiguous(), slots.to(torch.int64).contiguous()
        key_array = self._array(*[t.data_ptr() for t in keys])
        value_array = self._array(*[t.data_ptr() for t in values])
        c.keys, c.values = ctypes.addressof(key_array), ctypes.addressof(value_array)
        c.rows, c.slots, c.count = rows.data_ptr(), slots.data_ptr(), slots.shape[0]
        c.k_row, c.k_head, c.v_row, c.v_head = *key.stride()[:2], *value.stride()[:2]
        c.threads = torch.get_num_threads()
        self._library.thriftree_commit(ctypes.addressof(c))

    def _slowly(self, keys: Sequence[Tensor], values: Sequence[Tensor], rows: Tensor, slots: Tensor) -> None:
        rows, slots = rows.long()[slots >= 0], slots.long()[slots >= 0]
        for key_cache, value_cache, key, value in zip(*self._caches, keys, values, strict=True):
            layout.write(key_cache, slots, key[rows], True, self._isa)
            layout.write(value_cache, slots, value[rows], False, self._isa)
