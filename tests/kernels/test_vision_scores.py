"""Readings of a vision tower's layer against eager attention in float64; what must not be read is NaN."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from thriftree.kernels import vision_scores
from thriftree.kernels.vision_scores import Reading, reference

LENGTHS = [[1], [2, 3], [63], [577], [100, 1, 33, 64], [5] * 7, [1009]]
ATTENTION: tuple[Reading, ...] = ("received", "cls", "global")


def layer(
    lengths: list[int], heads: int = 3, dim: int = 20, dtype: torch.dtype = torch.float32, sharp: float = 3.0
) -> tuple[Tensor, Tensor, list[int]]:
    """Queries and keys that lie in one buffer with NaN around them, as after a fused projection."""
    total, generator = sum(lengths), torch.Generator().manual_seed(sum(lengths))
    fused = torch.full((total + 3, heads, 3 * dim), torch.nan, dtype=dtype)
    q, k = fused[:total, :, :dim], fused[:total, :, dim : 2 * dim]
    q.copy_(sharp * torch.randn(q.shape, generator=generator)), k.copy_(torch.randn(k.shape, generator=generator))
    return q, k, [0, *torch.tensor(lengths).cumsum(0).tolist()]


def attention(q: Tensor, k: Tensor, start: int, end: int, scale: float) -> tuple[Tensor, Tensor]:
    """Logits and probabilities ``[H, S, S]`` of a sequence, in float64."""
    logits = torch.einsum("qhd,khd->hqk", q[start:end].double(), k[start:end].double()) * scale
    return logits, logits.softmax(-1)


def truth(
    reading: Reading, q: Tensor, k: Tensor, starts: list[int], scale: float, cls: bool, threshold: float
) -> Tensor:
    parts = []
    for start, end in pairwise(starts):
        logits, shares = attention(q, k, start, end, scale)
        received = shares.mean((0, 1))
        if reading == "keys":
            part = k[start:end].double().mean(1)
        elif reading == "cls_logits":
            part = logits.mean(0)[0] if cls else logits.mean((0, 1))
        elif reading == "cls" and cls:
            part = shares.mean(0)[0]
        elif reading == "global":
            central = [r for r in range(int(cls), end - start) if received[r] > threshold * received[cls:].mean()]
            part = shares.mean(0)[central or slice(None)].mean(0)
        else:
            part = received
        parts.append(part[1:] if cls else part)
    return torch.cat(parts)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("reading", ["received", "cls", "cls_logits", "global", "keys"])
@pytest.mark.parametrize("cls", [False, True])
def test_readings(reading: Reading, lengths: list[int], cls: bool) -> None:
    q, k, starts = layer(lengths)
    for threshold in (0.0, 1.3, 1e6):
        found = vision_scores.read(reading, q, k, starts, 0.2, cls=cls, threshold=threshold)
        expected = truth(reading, q, k, starts, 0.2, cls, threshold)
        assert found.dtype == torch.float32 and found.shape == expected.shape
        assert found.numel() == 0 or float((found - expected).abs().max()) <= 1e-5 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    q, k, starts = layer([300, 7], dtype=dtype)
    for reading in ATTENTION:
        expected = truth(reading, q, k, starts, 0.2, True, 1.1)
        assert (
            float((vision_scores.read(reading, q, k, starts, 0.2, cls=True, threshold=1.1) - expected).abs().max())
            < 1e-5
        )


@pytest.mark.parametrize("most", [1, 100, 7000, 1 << 22])
def test_blocks_of_rows(most: int) -> None:
    q, k, starts = layer([63, 20])
    expected = sum(attention(q, k, 0, 63, 0.2)[1].sum((0, 1)))
    sums = reference.column_sums(q, k, starts, 0.2, most=most)
    assert float((sums - vision_scores.column_sums(q, k, starts, 0.2)).abs().max()) < 1e-5
    assert float(sums[:63].sum()) == pytest.approx(float(expected), rel=1e-5)


def test_weights_and_first_rows() -> None:
    q, k, starts = layer([40, 9])
    weights = torch.zeros(49)
    weights[[2, 11, 45]] = torch.tensor([0.5, 2.0, 1.0])
    sums = vision_scores.column_sums(q, k, starts, 0.2, weights=weights)
    for start, end in ((0, 40), (40, 49)):
        expected = (attention(q, k, start, end, 0.2)[1] * weights[start:end, None]).sum((0, 1))
        assert float((sums[start:end] - expected).abs().max()) < 1e-5
        first = vision_scores.column_sums(q, k, starts, 0.2, rows=12)[start:end]
        assert float((first - attention(q, k, start, end, 0.2)[1][:, :12].sum((0, 1))).abs().max()) < 1e-5


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("reading", ["received", "cls", "cls_logits", "global", "keys"])
def test_heads_on_two_ranks(reading: Reading, cls: bool) -> None:
    """Both ranks run in turns: a reduction sees what the other rank brought to it in the round before."""
    q, k, starts = layer([50, 13], heads=4)
    whole = vision_scores.read(reading, q, k, starts, 0.2, cls=cls, threshold=1.2)
    halves = [(q[:, :2], k[:, :2]), (q[:, 2:], k[:, 2:])]
    known: list[list[Tensor]] = [[], []]
    for rounds in range(3):
        brought: list[list[Tensor]] = [[], []]
        for rank, (q_part, k_part) in enumerate(halves):

            def reduce(
                values: Tensor, mine: list[Tensor] = brought[rank], others: list[Tensor] = known[1 - rank]
            ) -> Tensor:
                mine.append(values)
                return values + others[len(mine) - 1] if len(mine) <= len(others) else values

            found = vision_scores.read(
                reading, q_part, k_part, starts, 0.2, cls=cls, threshold=1.2, heads=4, reduce=reduce
            )
            if rounds == 2:
                assert float((found - whole).abs().max()) < 1e-5
        known = brought
    assert len(known[0]) == len(known[1]) == (2 if reading == "global" else 1)


def test_what_does_not_fit() -> None:
    q, k, starts = layer([5, 4])
    for offsets in ([0, 5], [1, 9], [0, 10, 9], []):
        with pytest.raises(ValueError, match="sequences must"):
            vision_scores.column_sums(q, k, offsets, 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        vision_scores.column_sums(q, k[:8], starts, 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        vision_scores.column_sums(q, k.half(), starts, 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        vision_scores.column_sums(q, k, starts, 1.0, weights=torch.ones(8))
    assert vision_scores.column_sums(q[:0], k[:0], [0], 1.0).shape == (0,)
