"""`expected_attention`: the attention that queries to come are expected to pay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rope, Rows


@dataclass(frozen=True)
class ExpectedAttention(Method):
    """Keep the rows that queries of the next `future` positions are expected to attend to, weighed by their values.

    Queries to come are taken for Gaussian, with the mean and the covariance of the newest ones before their
    rotation, turned by the mean rotation of the next `future` positions. A row's score is the softmax of the
    expected logit (the mean, and half the variance), averaged over the query heads of a KV head, plus `eps`, times
    the norm of its value.

    Paper: Expected Attention, arXiv 2510.00636. There, statistics are over all queries of the prompt except the
    sinks'; a server has thrown these away when the prompt is complete, so here they are over the newest 32, and the
    covariance is a low-rank one. All in float32. `eps` is the paper's; at some thousand rows it outweighs the mean
    probability.
    """

    paper: ClassVar[str] = "2510.00636"
    window: ClassVar[int] = 32
    needs_rope: ClassVar[bool] = True
    eps: float = field(
        default=0.01, metadata={"minimum": 0.0, "maximum": 1.0, "description": "added to each probability"}
    )
    future: int = field(
        default=512, metadata={"minimum": 1, "maximum": 65536, "description": "positions to come that count"}
    )

    def score(self, rows: Rows) -> Tensor:
        probability = expected_logits(rows, self.future).softmax(dim=-1).mean(dim=1)
        return (probability + self.eps) * rows.values.norm(dim=-1)


def expected_logits(rows: Rows, future: int) -> Tensor:
    """``[H, G, M]`` log of the mean of exp(logit) over Gaussian queries."""
    assert rows.queries is not None and rows.rope is not None
    plain = rows.rope.rotate(rows.queries.float(), -rows.query_pos.to(rows.pos.device))
    ahead = torch.arange(rows.length, rows.length + future, device=plain.device)
    turned = plain @ mean_rotation(rows.rope, ahead, plain.shape[-1])  # [H, G, W, D]
    mean = turned.mean(dim=2, keepdim=True)
    # The covariance as a product of its W deviations: W dot products per key and not D x D ones.
    pulls = torch.cat((mean, turned - mean), dim=2) @ rows.keys[:, None].mT * rows.scale
    return pulls[:, :, 0] + pulls[:, :, 1:].square().mean(dim=2) / 2


def mean_rotation(rope: Rope, positions: Tensor, channels: int) -> Tensor:
    """``[D, D]``: ``x @ it`` is the mean of ``x`` rotated to each of `positions`."""
    half = rope.frequencies.shape[0]
    angles = positions[:, None].float() * rope.frequencies.float()
    cos, sin = angles.cos().mean(dim=0), angles.sin().mean(dim=0)
    first = torch.arange(half, device=angles.device)
    first, second = (2 * first, 2 * first + 1) if rope.interleaved else (first, first + half)
    turn = torch.eye(channels, device=angles.device)
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = sin, -sin
    return turn
