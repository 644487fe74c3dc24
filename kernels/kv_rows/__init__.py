"""What KV-cache compression does with cached rows.

One layer's keys or values are ``[blocks, kv_heads, block, dim]``. A *head block* is ``block_id * kv_heads + head``, a
*cell* is ``head_block * block + row``: one row of one head. A cache seen as ``[blocks * kv_heads, 1, block, dim]`` has
the same numbers. `isa` is vLLM's name for the layout of its CPU cache, or ``rows``: what the strides say, as on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from thriftree.kernels.kv_rows import cpu, grid, reference
from thriftree.kernels.kv_rows.reference import cells

__all__ = ["Mover", "backend", "cells", "move", "read"]


def backend(device: str = "cpu") -> str:
    """What runs on `device`: ``c``, ``torch`` or ``triton``."""
    if device == "cpu":
        return "torch" if cpu.library() is None else "c"
    return "triton" if device == "cuda" else "torch"


def read(cache: Tensor, table: Tensor, rows: int, *, keys: bool, isa: str | None = None) -> Tensor:
    """The first rows of each head: ``[H, rows, dim]``, contiguous, in the cache's dtype.

    Args:
        cache: one layer's keys or values.
        table: ``[H, nb]`` head blocks of each head, in order; any integer type. Blocks past the rows are not looked at.
        keys: whether `cache` holds keys.

    Raises:
        ValueError: a table too short for the rows, or a head block out of the cache (CPU only).
    """
    isa = isa or grid.default(cache.device)
    if backend(cache.device.type) == "c":
        return cpu.read(cache, table, rows, keys=keys, isa=isa)
    if rows > table.shape[1] * cache.shape[2]:
        raise ValueError("the table has too few blocks")
    return reference.read(cache, table, rows, keys=keys, isa=isa)


class Mover:
    """Moves cells within the caches of the layers that share a table (one KV cache group): built once.

    Keeps the addresses of the caches, so that they must stay where they are.
    """

    def __init__(self, key_caches: Sequence[Tensor], value_caches: Sequence[Tensor], isa: str | None = None) -> None:
        """One cache per layer and half.

        Raises:
            ValueError: layers that differ in shape, stride, dtype or device.
        """
        keys, values = list(key_caches), list(value_caches)
        first = grid.same(keys, "key caches")
        if grid.same(values, "value caches").shape[:3] != first.shape[:3] or len(keys) != len(values):
            raise ValueError("keys and values must have the same layers and blocks")
        self._ends = (len(keys) + 1,)
        self._run = _mover(keys, values, isa or grid.default(first.device))

    def __call__(self, sources: Tensor, destinations: Tensor, offsets: Tensor) -> None:
        """Copy key and value of cell ``sources[i]`` to cell ``destinations[i]``, in the layer that `i` belongs to.

        Args:
            sources, destinations: ``[n]`` int64 cells. In a layer no destination is a source, and none occurs twice.
                A negative number on either side: nothing is moved.
            offsets: ``[layers + 1]`` int64; layer `l` has the cells ``offsets[l]`` up to ``offsets[l + 1]``.

        Raises:
            ValueError: offsets that do not fit, or a cell out of the cache (CPU only); nothing has moved then.
        """
        if sources.shape != destinations.shape or sources.ndim != 1:
            raise ValueError(f"one destination per source expected: {sources.shape}, {destinations.shape}")
        if offsets.shape != self._ends:
            raise ValueError(f"offsets of {self._ends[0]} expected, not {tuple(offsets.shape)}")
        if sources.shape[0]:
            self._run(sources, destinations, offsets)


def _mover(keys: list[Tensor], values: list[Tensor], isa: str) -> Callable[[Tensor, Tensor, Tensor], None]:
    chosen = backend(keys[0].device.type)
    if chosen == "c":
        return cpu.Mover(keys, values, isa)
    if chosen == "triton":
        from thriftree.kernels.kv_rows import triton

        return triton.Mover(keys, values, isa)

    def run(sources: Tensor, destinations: Tensor, offsets: Tensor) -> None:
        reference.move(keys, values, sources, destinations, offsets, isa=isa)

    return run


def move(
    key_caches: Sequence[Tensor],
    value_caches: Sequence[Tensor],
    sources: Tensor,
    destinations: Tensor,
    offsets: Tensor,
    isa: str | None = None,
) -> None:
    """`Mover` for one call."""
    Mover(key_caches, value_caches, isa)(sources, destinations, offsets)
