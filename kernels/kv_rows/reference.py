"""What the kernels must give, in plain torch: every layout, every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from thriftree.kernels.kv_rows import grid

#: Logits that are held at once.
MOST = 1 << 22


def read(cache: Tensor, table: Tensor, rows: int, *, keys: bool, isa: str) -> Tensor:
    """See `thriftree.kernels.kv_rows.read`."""
    heads, block = cache.shape[1:3]
    used = table[:, : -(-rows // block)].long()
    picked = grid.by_token(cache, keys, isa)[used // heads, used % heads]
    return picked.flatten(4).flatten(2, 3).flatten(1, 2)[:, :rows].contiguous()


def move(
    key_caches: Sequence[Tensor],
    value_caches: Sequence[Tensor],
    sources: Tensor,
    destinations: Tensor,
    offsets: Tensor,
    *,
    isa: str,
) -> None:
    """See `thriftree.kernels.kv_rows.Mover`."""
    wanted = (sources >= 0) & (destinations >= 0)
    ends = offsets.tolist()
    for layer, (first, last) in enumerate(pairwise(ends)):
        mine = wanted[first:last]
        here, there = sources[first:last][mine], destinations[first:last][mine]
        for caches, keys in ((key_caches, True), (value_caches, False)):
            view = grid.by_token(caches[layer], keys, isa)
            view[_place(there, caches[layer], view)] = view[_place(here, caches[layer], view)]


def _place(cells: Tensor, cache: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (heads, block), inner = cache.shape[1:3], view.shape[3]
    head_block, row = cells // block, cells % block
    return head_block // heads, head_block % heads, row // inner, row % inner


def cells(table: Tensor, rows: Tensor, block: int) -> Tensor:
    """Cells of the rows ``[H, n]`` of each head, by the heads' tables ``[H, nb]`` of head blocks."""
    return table.long().gather(1, rows // block) * block + rows % block


def logits(
    q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float, most: int = MOST
) -> Iterator[tuple[slice, Tensor]]:
    """See `thriftree.kernels.kv_rows.logits`."""
    heads, group, queries, _ = q.shape
    keys = k.float().transpose(1, 2)
    step = max(1, most // max(1, heads * group * k.shape[1]))
    for first in range(0, queries, step):
        part = slice(first, min(first + step, queries))
        rows = (q[:, :, part].float() * scale).flatten(1, 2)
        block = torch.matmul(rows, keys).unflatten(1, (group, -1))
        yield part, block.masked_fill_((pos[:, None] > q_pos[part][None, :, None])[:, None], -torch.inf)


def column_sums(q: Tensor, k: Tensor, pos: Tensor, q_pos: Tensor, scale: float, most: int = MOST) -> Tensor:
    """See `thriftree.kernels.kv_rows.column_sums`."""
    sums = torch.zeros(pos.shape, device=q.device)
    for _, block in logits(q, k, pos, q_pos, scale, most):
        sums += probabilities(block).sum((1, 2))
    return sums


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; all 0 where every logit is -inf."""
    if not logits.shape[-1]:
        return logits
    return torch.softmax(logits, dim=-1).masked_fill_(logits.amax(-1, keepdim=True) == -torch.inf, 0.0)


def decode_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    *,
    bias: Tensor | None,
    isa: str,
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """See `thriftree.kernels.kv_rows.decode_attention`."""
    (requests, heads, nb), block = table.shape, key_cache.shape[2]
    seen = torch.arange(nb * block, device=q.device) < lens[:, :, None]
    lines = table.long().masked_fill(~seen[:, :, ::block], 0).flatten(0, 1)
    if bias is not None:
        extra = bias[cells(lines, torch.arange(nb * block, device=q.device).expand(len(lines), -1), block)]
        extra = extra.unflatten(0, (requests, heads)).to(accumulate)
        seen = seen & (extra != -torch.inf)
    keys, values = (
        read(cache, lines, nb * block, keys=half, isa=isa).unflatten(0, (requests, heads)).to(accumulate)
        for cache, half in ((key_cache, True), (value_cache, False))
    )
    logit = torch.matmul(q.to(accumulate), keys.transpose(2, 3)) * scale
    if bias is not None:
        logit = logit + extra[:, :, None]
    weights = probabilities(logit.masked_fill(~seen[:, :, None], -torch.inf))
    return torch.matmul(weights, values.masked_fill(~seen[..., None], 0.0)).to(q.dtype)


__all__ = ["cells", "column_sums", "decode_attention", "logits", "move", "probabilities", "read"]
