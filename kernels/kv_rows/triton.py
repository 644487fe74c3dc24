"""Moving cells on a GPU, and in the interpreter in tests. Nothing here waits for the device."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftree.kernels.kv_rows import grid

CELLS = 16


@triton.jit
def _move(
    addresses, layers, sources, destinations, cells,
    s_block, s_head, s_outer, s_inner, d_outer, d_inner,
    HEADS: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, PIECE: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """A few cells of one half of the caches. Bits are moved, not numbers."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    source = tl.load(sources + i, mask=i < cells, other=-1)
    destination = tl.load(destinations + i, mask=i < cells, other=-1)
    live = (source >= 0) & (destination >= 0)
    layer = tl.load(layers + i, mask=live, other=0)
    cache = tl.load(addresses + layer, mask=live, other=0).to(tl.pointer_type(WORD))
    d = tl.arange(0, WIDE)
    channel = d // PIECE * d_outer + d % PIECE * d_inner
    mask = live[:, None] & (d < DIM)[None, :]
    block, row = source // ROWS, source % ROWS
    at = block // HEADS * s_block + block % HEADS * s_head + row // TOKENS * s_outer + row % TOKENS * s_inner
    bits = tl.load((cache + at)[:, None] + channel[None, :], mask=mask, other=0)
    block, row = destination // ROWS, destination % ROWS
    at = block // HEADS * s_block + block % HEADS * s_head + row // TOKENS * s_outer + row % TOKENS * s_inner
    tl.store((cache + at)[:, None] + channel[None, :], bits, mask=mask)


class Mover:
    """See `thriftree.kernels.kv_rows.Mover`."""

    def __init__(self, key_caches: Sequence[Tensor], value_caches: Sequence[Tensor], isa: str) -> None:
        self._halves = [(list(key_caches), True), (list(value_caches), False)]
        self._addresses = [
            torch.tensor([t.data_ptr() for t in half], dtype=torch.int64, device=half[0].device)
            for half, _ in self._halves
        ]
        self._views = [grid.by_token(half[0], keys, isa) for half, keys in self._halves]

    def __call__(self, sources: Tensor, destinations: Tensor, offsets: Tensor) -> None:
        count = sources.shape[0]
        which = torch.arange(count, device=sources.device)
        layers = torch.searchsorted(offsets.to(which.dtype), which, right=True) - 1
        for (caches, _), addresses, view in zip(self._halves, self._addresses, self._views, strict=True):
            heads, rows, dim = caches[0].shape[1:]
            _move[(triton.cdiv(count, CELLS),)](
                addresses, layers, sources.contiguous(), destinations.contiguous(), count, *view.stride(),
                HEADS=heads, ROWS=rows, TOKENS=view.shape[3], PIECE=view.shape[5],
                DIM=dim, WIDE=triton.next_power_of_2(dim), N=CELLS, WORD=_word(caches[0]),
            )  # fmt: skip


def _word(cache: Tensor) -> tl.dtype:
    return {1: tl.int8, 2: tl.int16, 4: tl.int32}[cache.element_size()]
