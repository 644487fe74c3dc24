"""What KV-cache compression does with cached rows.

One layer's keys or values are ``[blocks, kv_heads, block, dim]``. A *head block* is ``block_id * kv_heads + head``, a
*cell* is ``head_block * block + row``: one row of one head. A cache seen as ``[blocks * kv_heads, 1, block, dim]`` has
the same numbers. `isa` is vLLM's name for the layout of its CPU cache, or ``rows``: what the strides say, as on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from thriftree.kernels.kv_rows import cpu, cpu_sums, grid, reference
from thriftree.kernels.kv_rows.reference import cells

__all__ = ["Mover", "backend", "cells", "column_sums", "decode_attention", "logits", "move", "read"]


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


def column_sums(q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float, *, mean: bool = False) -> Tensor:
    """Attention probabilities of some queries on the cached rows, added up over the queries.

    Args:
        q: ``[H, G, W, D]`` rotated queries; `G` query heads share a KV head.
        k: ``[H, M, D]`` cached keys, of the same dtype. What a row that no query sees holds is never used.
        pos: ``[H, M]`` positions of the rows, in any order.
        q_pos: ``[W]`` positions of the queries; a query sees rows up to its own position.
        scale: of the logits.
        mean: divide by ``W * G``.

    Returns:
        ``[H, M]`` float32. A query that sees no row adds nothing.
    """
    sums = _sums(q, k, pos, q_pos, scale)
    return sums / max(1, q.shape[1] * q.shape[2]) if mean else sums


def _sums(q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float) -> Tensor:
    chosen = backend(q.device.type)
    heads, _, queries, dim = q.shape
    if q.dtype != k.dtype or k.shape != (*pos.shape, dim) or k.shape[0] != heads or q_pos.shape != (queries,):
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, pos, q_pos))
        raise ValueError(f"queries {q.dtype}, keys {k.dtype} and their positions do not fit: {shapes}")
    if not q.numel() or not k.numel():
        return torch.zeros(pos.shape, device=q.device)
    if chosen == "triton":
        from thriftree.kernels.kv_rows import triton_window

        return triton_window.column_sums(q, k, pos, q_pos, scale)
    if chosen == "c" and q.dtype in cpu_sums.TYPES:
        return cpu_sums.column_sums(q, k, pos, q_pos, scale)
    return reference.column_sums(q, k, pos, q_pos, scale)


def logits(
    q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float, most: int = reference.MOST
) -> Iterator[tuple[slice, Tensor]]:
    """For methods that weigh for themselves: the scaled logits of some queries at a time, at most `most` numbers.

    Arguments as in `column_sums`.

    Yields:
        Which of the `W` queries, and their ``[H, G, w, M]`` float32; -inf where the row is younger than the query. The
        caller may write into it.
    """
    return reference.logits(q, k, pos, q_pos, scale, most)


def decode_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    *,
    bias: Tensor | None = None,
    isa: str | None = None,
) -> Tensor:
    """Attention of one query row per request over cached rows whose number differs from head to head.

    Args:
        q: ``[R, H, G, D]``.
        table: ``[R, H, nb]`` head blocks.
        lens: ``[R, H]`` rows of each head.
        bias: ``[cells]`` of the cache, added to the scaled logit; -inf: the row is not looked at.

    Returns:
        ``[R, H, G, D]``; 0 where a head has no row to look at.
    """
    isa = isa or grid.default(q.device)
    if backend(q.device.type) == "triton":
        from thriftree.kernels.kv_rows import triton_decode

        return triton_decode.decode_attention(q, key_cache, value_cache, table, lens, scale, bias=bias, isa=isa)
    return reference.decode_attention(q, key_cache, value_cache, table, lens, scale, bias=bias, isa=isa)
