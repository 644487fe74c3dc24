"""What query rows say of cached keys, in pieces that bound the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from thriftree.kernels import kv_rows
from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows

_LOGITS = 1 << 22  # at once


def weighed(method: Method, rows: Rows, queries: Tensor, first: int) -> Tensor:
    """``[H, M]`` float32: `Method.weigh` summed over ``queries [H, G, T, D]`` of the positions from `first` on."""
    heads, group, count, _ = queries.shape
    if type(method).weigh is Method.weigh:
        at = torch.arange(first, first + count)
        return kv_rows.column_sums(queries.float(), rows.keys, rows.pos, at, rows.scale)
    keys = rows.keys[:, None].transpose(2, 3)  # [H, 1, D, M]
    piece = max(1, _LOGITS // (heads * group * rows.pos.shape[1]))
    total = torch.zeros(rows.pos.shape)
    for begin in range(0, count, piece):
        part = queries[:, :, begin : begin + piece].float()
        at = torch.arange(first + begin, first + begin + part.shape[2])
        logits = (part @ keys).mul_(rows.scale)
        younger = rows.pos[:, None, None, :] > at[:, None]
        total += method.weigh(logits.masked_fill_(younger, -torch.inf), rows, at).sum((1, 2))
    return total
