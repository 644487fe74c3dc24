"""Greedy choices among rows against naive greedy ones in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from torch import Tensor

from thriftree.kernels import vision_select
from thriftree.kernels.vision_select import reference

SIZES = [(1, 1), (2, 1), (3, 3), (63, 20), (100, 100), (383, 50), (385, 385), (576, 64), (1009, 30), (2880, 12)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int, dim: int = 64, seed: int = 0) -> Tensor:
    """Rows of length 1 in front of NaN."""
    made = torch.full((count + 7, dim), torch.nan)
    made[:count] = torch.nn.functional.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1
    )
    return made[:count]


def naive_max_min(unit: Tensor, k: int, first: int | None) -> list[int]:
    apart = 1 - unit.double() @ unit.double().T
    if first is None:
        first = int(apart.clone().fill_diagonal_(torch.inf).amin(1).argmax())
    picks = [first]
    while len(picks) < k:
        rest = [row for row in range(len(unit)) if row not in picks]
        nearest = apart[rest][:, picks].amin(1)
        picks.append(rest[int(nearest.argmax())])
    return picks


def naive_dpp(unit: Tensor, quality: Tensor, k: int) -> list[int]:
    """By determinants."""
    kernel = (unit.double() @ unit.double().T).fill_diagonal_(1.0) * quality.double() * quality.double()[:, None]
    picks: list[int] = []
    while len(picks) < k:
        rest = [row for row in range(len(unit)) if row not in picks]
        volumes = torch.stack([kernel[[*picks, row]][:, [*picks, row]].det() for row in rest])
        picks.append(rest[int(volumes.argmax())])
    return picks


def sound(picks: Tensor, k: int, count: int) -> bool:
    distinct = len(set(picks.tolist())) == k
    return (
        picks.dtype == torch.int64 and picks.shape == (k,) and distinct and bool(((picks >= 0) & (picks < count)).all())
    )


@pytest.mark.parametrize(("count", "k"), SIZES)
@pytest.mark.parametrize("first", [None, 0, -1])
def test_max_min(count: int, k: int, first: int | None) -> None:
    unit, start = rows(count), count - 1 if first == -1 else first
    picks = vision_select.max_min(unit, k, start)
    assert sound(picks, k, count)
    assert picks.tolist() == naive_max_min(unit, k, start)


@pytest.mark.parametrize(("count", "k", "dim"), [(1, 1, 8), (5, 5, 8), (40, 12, 64), (63, 20, 64), (130, 9, 16)])
@pytest.mark.parametrize("weighted", [False, True])
def test_greedy_dpp(count: int, k: int, dim: int, weighted: bool) -> None:
    unit = rows(count, dim)
    quality = torch.rand(count, generator=torch.Generator().manual_seed(1)) + 0.1 if weighted else None
    picks = vision_select.greedy_dpp(unit, quality, k)
    assert sound(picks, k, count)
    assert picks.tolist() == naive_dpp(unit, torch.ones(count) if quality is None else quality, k)


@pytest.mark.parametrize("k", [1, 7, 16, 17, 40, 200])
def test_more_than_the_rows_span(k: int) -> None:
    """16 dimensions: from the 17th on the best of the rest, by quality, ties by place."""
    unit, quality = rows(200, 16), torch.linspace(1, 2, 200)
    for weight, order in ((quality, range(199, -1, -1)), (None, range(200))):
        picks = vision_select.greedy_dpp(unit, weight, k)
        assert sound(picks, k, 200)
        spanning = picks.tolist()[:16]
        assert picks.tolist()[16:] == [row for row in order if row not in spanning][: max(0, k - 16)]


@pytest.mark.parametrize("count", [*range(1, 40, 2), 255, 577, 2879])
def test_every_count(count: int) -> None:
    unit = rows(count, 8)
    for k in {0, 1, min(5, count), count if count < 600 else 9}:
        assert sound(vision_select.max_min(unit, k), k, count)
        assert sound(vision_select.greedy_dpp(unit, None, k), k, count)


def test_ties_go_to_the_first() -> None:
    same = rows(1).repeat(50, 1)
    assert vision_select.max_min(same, 50).tolist() == list(range(50))
    assert vision_select.greedy_dpp(same, None, 50).tolist() == list(range(50))
    axes = torch.eye(8).repeat_interleave(5, 0)  # 8 groups of 5 equal rows
    for picks in (vision_select.max_min(axes, 8, 0), vision_select.greedy_dpp(axes, None, 8)):
        assert picks.tolist() == list(range(0, 40, 5))
    assert vision_select.max_min(axes, 40, 39).tolist()[1:8] == list(range(0, 35, 5))


def test_rows_that_are_zero_or_broken() -> None:
    unit = rows(40).clone()
    unit[3], unit[7], unit[9] = 0, torch.nan, torch.inf
    quality = torch.ones(40)
    quality[11], quality[12] = torch.nan, -1
    for k in (1, 20, 40):
        for picks in (
            vision_select.max_min(unit, k),
            vision_select.max_min(unit, k, 7),
            vision_select.greedy_dpp(unit, None, k),
            vision_select.greedy_dpp(unit, quality, k),
        ):
            assert sound(picks, k, 40)
    assert not {3, 7, 9, 11, 12} & set(vision_select.greedy_dpp(unit, quality, 35).tolist())


def test_max_min_is_within_half_of_the_best_in_distance() -> None:
    for seed in range(20):
        unit = rows(12, 5, seed)
        apart = torch.cdist(unit, unit)
        spread = [float(apart[list(p)][:, list(p)].add(torch.eye(4) * 9).min()) for p in combinations(range(12), 4)]
        picks = vision_select.max_min(unit, 4)
        assert float(apart[picks][:, picks].add(torch.eye(4) * 9).min()) >= max(spread) / 2 - 1e-6


def test_a_hidden_cluster_is_found_before_any_row_comes_twice() -> None:
    centres = rows(6, 64, 3)
    unit = torch.nn.functional.normalize(centres.repeat_interleave(20, 0) + 0.01 * rows(120, 64, 4), dim=-1)
    for picks in (vision_select.max_min(unit, 6), vision_select.greedy_dpp(unit, None, 6)):
        assert sorted(int(p) // 20 for p in picks) == list(range(6))


def test_cosines_are_symmetric() -> None:
    for count in (1, 383, 384, 385, 1000):
        unit = rows(count)
        found = reference.cosines(unit)
        assert torch.equal(found, found.T)
        assert float((found - unit @ unit.T).abs().max()) < 1e-6


def test_half_precision_rows_are_taken_as_float32() -> None:
    unit = rows(100).bfloat16()
    assert torch.equal(vision_select.max_min(unit, 20), vision_select.max_min(unit.float(), 20))


def test_what_does_not_fit() -> None:
    unit = rows(5)
    for k in (-1, 6):
        with pytest.raises(ValueError, match="k must be"):
            vision_select.max_min(unit, k)
        with pytest.raises(ValueError, match="k must be"):
            vision_select.greedy_dpp(unit, None, k)
    with pytest.raises(ValueError, match="first must be"):
        vision_select.max_min(unit, 2, 5)
    with pytest.raises(ValueError, match="quality must be"):
        vision_select.greedy_dpp(unit, torch.ones(4), 2)
    assert vision_select.max_min(unit[:0], 0).shape == (0,)
    assert vision_select.greedy_dpp(unit[:0], None, 0).shape == (0,)
