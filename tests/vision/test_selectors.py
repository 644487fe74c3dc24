"""Selectors against slow references and on images planted so that one behaviour shows."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vision.vision_toy import TOWER, grid, image, tiled
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.dpp import scaled
from thriftree.plugins.vision.hiprune import around
from thriftree.plugins.vision.image import Image, Layout, Tap, Tower

seeds = st.integers(0, 2**31)


def picked(method: str, options: dict[str, Any], picture: Image) -> list[int]:
    rows: list[int] = registry.configure(method, options).pick(picture).rows.tolist()
    return rows


def picture(method: str, options: dict[str, Any], keep: int, layout: Layout, *readings: Tensor, seed: int = 0) -> Image:
    """A random image with these readings in the order of the method's taps."""
    configured = registry.configure(method, options)
    taps = dict(zip(configured.taps(TOWER), readings, strict=True))
    return replace(image(configured, keep, layout, seed), taps=taps)


def distances(unit: Tensor) -> Tensor:
    return 1 - unit.double() @ unit.double().T


def naive_max_min(far: Tensor, keep: int, start: int) -> list[int]:
    kept = [start]
    while len(kept) < keep:
        others = [row for row in range(len(far)) if row not in kept]
        kept.append(max(others, key=lambda row: (float(far[row, kept].min()), -row)))
    return sorted(kept)


@settings(max_examples=30)
@given(st.integers(2, 40), st.data(), seeds)
def test_divprune_is_the_greedy_rule(rows: int, data: st.DataObject, seed: int) -> None:
    keep = data.draw(st.integers(1, rows))
    given_image = image(registry.configure("divprune"), keep, grid(rows), seed)
    far = distances(given_image.unit)
    start = int(far.clone().fill_diagonal_(9.0).min(dim=1).values.argmax())
    assert picked("divprune", {}, given_image) == naive_max_min(far, keep, start)


@settings(max_examples=15)
@given(st.integers(4, 11), st.integers(2, 4), seeds)
def test_divprune_is_at_least_half_as_far_apart_as_the_best_choice(rows: int, keep: int, seed: int) -> None:
    """In the Euclidean distance on the sphere, which is a metric and gives the same picks."""
    given_image = image(registry.configure("divprune"), keep, grid(rows), seed, channels=4)
    far = (2 * distances(given_image.unit)).clamp(min=0).sqrt()

    def apart(kept: list[int]) -> float:
        return min(float(far[a, b]) for a, b in combinations(kept, 2))

    optimum = max(apart(list(kept)) for kept in combinations(range(rows), keep))
    assert apart(picked("divprune", {}, given_image)) >= optimum / 2 - 1e-5


@settings(max_examples=20)
@given(st.permutations(range(30)), st.integers(1, 30))
def test_divprune_does_not_depend_on_the_order(order: list[int], keep: int) -> None:
    first = image(registry.configure("divprune"), keep, grid(30))
    second = replace(first, features=first.features[order])
    assert sorted(order[row] for row in picked("divprune", {}, second)) == picked("divprune", {}, first)


@pytest.mark.parametrize("method", ["divprune", "dpp", "todre"])
def test_copies_wait_until_every_different_row_is_there(method: str) -> None:
    given_image = image(registry.configure(method), 12, grid(120))
    which = torch.arange(120) % 12
    copies = replace(given_image, features=given_image.features[:12][which])
    assert {row % 12 for row in picked(method, {}, copies)} == set(range(12))


@settings(max_examples=30)
@given(st.integers(2, 24), st.data(), st.booleans(), seeds)
def test_dpp_adds_what_grows_the_determinant_most(rows: int, data: st.DataObject, weighed: bool, seed: int) -> None:
    keep = data.draw(st.integers(1, min(rows, 6)))
    options = {"relevance": "attention"} if weighed else {}
    configured = registry.configure("dpp", options)
    given_image = image(configured, keep, grid(rows), seed, channels=16)
    quality = scaled(given_image.read("cls")).double() if weighed else torch.ones(rows).double()
    unit = given_image.unit.double() * quality[:, None]
    kernel = unit @ unit.T
    kept: list[int] = []
    for _ in range(keep):
        others = [row for row in range(rows) if row not in kept]
        gains = [float(torch.linalg.det(kernel[[*kept, row]][:, [*kept, row]])) for row in others]
        kept.append(next(row for row, gain in zip(others, gains, strict=True) if gain >= max(gains) * (1 - 1e-6)))
    if max(gains) > 1e-4:  # else what is left is 0 but for rounding
        assert picked("dpp", options, given_image) == sorted(kept)


@settings(max_examples=20)
@given(st.integers(2, 60), st.data(), seeds)
def test_todre_begins_at_the_row_of_most_attention(rows: int, data: st.DataObject, seed: int) -> None:
    keep = data.draw(st.integers(1, rows))
    given_image = image(registry.configure("todre"), keep, grid(rows), seed)
    start = int(given_image.read("cls").argmax())
    assert picked("todre", {}, given_image) == naive_max_min(distances(given_image.unit), keep, start)


def test_todre_begins_in_the_thumbnail() -> None:
    layout = tiled(2, (1, 2), (2, 2), newlines=False)
    attention = torch.tensor([0.1, 0.1, 0.3, 0.1, *[0.5] * 8])
    assert picked("todre", {}, picture("todre", {}, 1, layout, attention)) == [2]


def test_fopru_ranks_rows_or_lines() -> None:
    attention = torch.tensor([9.0, 1, 1, 1, 5, 5, 4, 4, 2, 3, 2, 2])
    lines = {3: [4, 5, 6], 4: [4, 5, 6, 7], 6: [0, 1, 4, 5, 6, 7], 8: [0, 1, 2, 3, 4, 5, 6, 7]}
    for keep, rows in lines.items():
        given_image = picture("fopru", {"strategy": "row"}, keep, Layout.grid(3, 4), attention)
        assert picked("fopru", {"strategy": "row"}, given_image) == rows
        given_image = picture("fopru", {}, keep, Layout.grid(3, 4), attention)
        order = sorted(range(12), key=lambda row: (-float(attention[row]), row))
        assert picked("fopru", {}, given_image) == sorted(order[:keep])


def test_fopru_keeps_whole_lines_where_the_count_allows() -> None:
    for lines in range(1, 12):
        given_image = image(registry.configure("fopru", {"strategy": "row"}), 12 * lines, Layout.grid(12, 12), lines)
        rows = picked("fopru", {"strategy": "row"}, given_image)
        assert len({row // 12 for row in rows}) == lines


def test_fopru_compares_lines_by_their_mean() -> None:
    attention = torch.tensor([3.0, 3, 3, 3, 4, 4])
    given_image = picture("fopru", {"strategy": "row"}, 2, Layout.grid(2, 4).pick(torch.arange(6)), attention)
    assert picked("fopru", {"strategy": "row"}, given_image) == [4, 5]


def hiprune(alpha: float, keep: int, middle: Tensor, deep: Tensor, layout: Layout) -> list[int]:
    given_image = picture("hiprune", {"alpha": alpha}, keep, layout, middle, deep)
    return picked("hiprune", {"alpha": alpha}, given_image)


def test_hiprune_keeps_the_neighbours_of_objects() -> None:
    middle, deep = torch.zeros(36), torch.arange(36.0)
    middle[14] = 1.0
    assert hiprune(0.5, 10, middle, deep, Layout.grid(6, 6)) == [8, 13, 14, 15, 20, 31, 32, 33, 34, 35]


def test_hiprune_takes_the_better_neighbours_where_not_all_fit() -> None:
    middle, deep = torch.zeros(36), torch.arange(36.0)
    middle[[14, 13, 8]] = torch.tensor([1.0, 0.9, 0.8])
    assert hiprune(0.1, 3, middle, deep, Layout.grid(6, 6)) == [8, 13, 14]


def test_hiprune_does_not_wrap_around_the_edges() -> None:
    middle, deep = torch.zeros(36), torch.zeros(36)
    middle[6], deep[0] = 1.0, 0.5
    deep[30:] = 1.0
    assert hiprune(0.1, 6, middle, deep, Layout.grid(6, 6)) == [0, 6, 7, 12, 30, 31]
    corner = torch.zeros(36)
    corner[0] = 1.0
    assert hiprune(0.1, 6, corner, deep, Layout.grid(6, 6)) == [0, 1, 6, 30, 31, 32]


def test_hiprune_alpha_moves_the_budget() -> None:
    draw = torch.Generator().manual_seed(1)
    middle, deep = torch.rand(576, generator=draw), torch.rand(576, generator=draw)
    layout = Layout.grid(24, 24)
    order = deep.argsort(descending=True)[:64].tolist()
    assert len(set(hiprune(0.0, 64, middle, deep, layout)) & set(order)) >= 59  # but one object and its neighbours
    objects = torch.zeros(576, dtype=torch.bool)
    objects[middle.argsort(descending=True)[:13]] = True
    near = (objects | around(objects, layout)).nonzero().flatten().tolist()
    kept = set(hiprune(1.0, 64, middle, deep, layout))
    assert kept >= set(near) or kept <= set(near)


def test_hiprune_shares_evenly_over_tiles() -> None:
    layout = tiled(6, (2, 2), (6, 6), newlines=False)
    deep = torch.zeros(180)
    deep[150:] = 1.0  # all of the attention is in the last tile
    rows = torch.tensor(hiprune(0.1, 50, torch.zeros(180), deep, layout))
    at = layout.pick(rows)
    tile = torch.where(at.view == 0, -1, at.row // 6 * 2 + at.col // 6)
    assert torch.bincount(tile + 1).tolist() == [10] * 5


def test_layers_are_counted_from_the_checkpoints_end() -> None:
    hi = registry.configure("hiprune")
    assert [tap.layer for tap in hi.taps(Tower(layers=23, depth=24))] == [9, 22]
    assert [tap.layer for tap in hi.taps(Tower(layers=32, whole=(7, 15, 23, 31)))] == [15, 31]
    assert [tap.layer for tap in registry.configure("tome").taps(Tower(layers=23, depth=24))] == [22]


def globalcom2(keep: int, layout: Layout, logits: Tensor, **options: Any) -> Tensor:
    return torch.tensor(picked("globalcom2", options, picture("globalcom2", options, keep, layout, logits)))


def by_tile(rows: Tensor, layout: Layout, side: int) -> list[int]:
    at = layout.pick(rows)
    tile = torch.where(at.view == 0, -1, at.row // side * 2 + at.col // side)
    return torch.bincount(tile + 1, minlength=5).tolist()


def test_globalcom2_shares_evenly_where_the_thumbnail_is_even() -> None:
    layout = tiled(6, (2, 2), (6, 6), newlines=False)
    logits = torch.randn(180, generator=torch.Generator().manual_seed(0))
    logits[:36] = 0.7
    assert by_tile(globalcom2(60, layout, logits), layout, 6) == [12] * 5


def test_globalcom2_gives_a_hot_tile_more_and_keeps_the_total() -> None:
    layout = tiled(6, (2, 2), (6, 6), newlines=False)
    logits = torch.randn(180, generator=torch.Generator().manual_seed(0))
    logits[:36] = 0.0
    logits[[21, 22, 27, 28]] = 8.0  # in the region of the last tile
    counts = by_tile(globalcom2(61, layout, logits), layout, 6)
    assert sum(counts) == 61 and counts[4] > counts[1] + 4 and max(counts[1:4]) - min(counts[1:4]) <= 1
    assert by_tile(globalcom2(170, layout, logits), layout, 6)[4] == 36
    even = by_tile(globalcom2(61, layout, logits, temperature=10000.0), layout, 6)
    assert max(even) - min(even) <= 1


def test_globalcom2_asks_the_thumbnail_which_rows_of_a_tile() -> None:
    layout = tiled(6, (2, 2), (6, 6), newlines=False)
    logits = torch.ones(180)
    logits[:36] = 0.0
    logits[0] = 5.0
    rows = globalcom2(20, layout, logits)
    at = layout.pick(rows)
    tile = at.pick((at.view == 1) & (at.row < 6) & (at.col < 6))
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} <= set(zip(tile.row.tolist(), tile.col.tolist(), strict=True))


def test_globalcom2_without_tiles_takes_the_best() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3))
    assert globalcom2(9, grid(50), logits).tolist() == sorted(logits.topk(9).indices.tolist())


def test_stride_is_even() -> None:
    for rows, keep in ((576, 64), (100, 33), (7, 7), (9, 1)):
        kept = torch.tensor(picked("stride", {}, image(registry.configure("stride"), keep, grid(rows))))
        assert kept.diff().unique().numel() <= 2
        assert abs(int(kept[0]) - (rows - 1 - int(kept[-1]))) <= rows // keep


def test_random_depends_on_the_seed() -> None:
    first = image(registry.configure("random"), 20, grid(100), seed=1)
    assert picked("random", {}, first) != picked("random", {}, replace(first, seed=2))


def test_a_tap_is_read_by_name_and_place() -> None:
    given_image = replace(
        image(registry.configure("stride"), 1, grid(2)),
        taps={
            Tap(1, "received"): torch.ones(2),
            Tap(1, "keys"): torch.ones(2, 2),
            Tap(3, "received"): torch.zeros(2),
        },
    )
    assert given_image.read("received").sum() == 2 and given_image.read("received", -1).sum() == 0
