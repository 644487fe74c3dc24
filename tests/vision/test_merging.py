"""Merging: nothing is lost, a mean is a mean, and the rows that the papers protect stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tests.vision.vision_toy import TOWER, grid, image, tiled
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.avgpool import bands
from thriftree.plugins.vision.image import Image, Layout, Selection
from thriftree.plugins.vision.merging import Groups, Rounds, cosine, halve, schedule
from thriftree.plugins.vision.pitome import energy, renewed

seeds = st.integers(0, 2**31)


def plain(features: Tensor, keep: int, layout: Layout | None = None) -> Image:
    return Image(features, keep, grid(len(features)) if layout is None else layout)


def run(method: str, picture: Image, **options: Any) -> tuple[list[int], Tensor]:
    configured = registry.configure(method, options)
    keys = {tap: picture.features for tap in configured.taps(TOWER)}
    chosen: Selection = configured.pick(replace(picture, taps=keys))
    return chosen.rows.tolist(), picture.features[chosen.rows] if chosen.features is None else chosen.features


@settings(max_examples=30)
@given(st.integers(1, 80), st.data(), st.sampled_from([0.05, 0.1, 0.5]), seeds)
def test_sizes_sum_up_and_the_weighted_mean_stays(rows: int, data: st.DataObject, share: float, seed: int) -> None:
    picture = image(registry.configure("aim"), data.draw(st.integers(1, rows)), grid(rows), seed)
    groups = halve(picture, picture.features, share)
    assert int(groups.sizes.sum()) == rows and len(groups.rows) == picture.keep
    assert torch.equal(groups.owner[groups.rows], groups.rows)
    chosen = groups.selection(picture)
    assert chosen.features is not None
    whole = (groups.sizes[:, None] * chosen.features).sum(dim=0)
    torch.testing.assert_close(whole, picture.features.sum(dim=0), rtol=1e-4, atol=1e-4)
    alone = groups.sizes == 1
    assert torch.equal(chosen.features[alone], picture.features[chosen.rows[alone]])


def test_every_group_is_the_mean_of_its_rows() -> None:
    picture = image(registry.configure("aim"), 9, grid(64))
    groups = halve(picture, picture.features, 0.3)
    for row, mean in zip(groups.rows.tolist(), groups.means(picture.features), strict=True):
        torch.testing.assert_close(mean, picture.features[groups.owner == row].mean(dim=0))
    weights = torch.rand(64, generator=torch.Generator().manual_seed(0))
    for row, mean in zip(groups.rows.tolist(), groups.means(picture.features, weights), strict=True):
        own = groups.owner == row
        torch.testing.assert_close(mean, weights[own] @ picture.features[own] / weights[own].sum())
    torch.testing.assert_close(groups.means(picture.features, torch.zeros(64)), groups.means(picture.features))


def test_rows_that_are_dropped_count_nowhere() -> None:
    groups = Groups(torch.tensor([0, 0, -1, 3, -1, 3, -1]))
    assert groups.rows.tolist() == [0, 3] and groups.sizes.tolist() == [2, 2]
    values = torch.tensor([1.0, 3.0, 100.0, 5.0, 100.0, 7.0, 100.0])[:, None]
    assert groups.means(values).flatten().tolist() == [2.0, 6.0]
    assert groups.merge(torch.tensor([0]), torch.tensor([3])).owner.tolist() == [3, 3, -1, 3, -1, 3, -1]


def means_of_all(groups: Groups, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """What `Groups.means` did at first: sums over all rows, whatever has changed."""
    stays = groups.owner >= 0

    def sums(what: Tensor) -> Tensor:
        return torch.zeros_like(what).index_add_(0, groups.owner[stays], what[stays])

    one = torch.ones(len(groups.owner)) if weights is None else weights
    whole = sums(one[:, None])[groups.owner.clamp(min=0), 0]
    one = torch.where(whole > 0, one / whole, 1.0)[:, None]
    return sums(values.float() * one)[groups.rows] / sums(one)[groups.rows]


@settings(max_examples=60)
@given(st.integers(1, 80), st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([1, 5, 40]), seeds, st.booleans())
def test_means_that_follow_are_those_of_all_rows(rows: int, share: float, width: int, seed: int, heat: bool) -> None:
    """Round by round: means and selections bit by bit, cosines within two of the steps that they are rounded to."""
    draw = torch.Generator().manual_seed(seed)
    metric = torch.randn(rows, width, generator=draw).to(torch.bfloat16 if seed % 2 else torch.float32)
    metric[torch.rand(rows, generator=draw) < 0.1] = 0
    picture = plain(torch.randn(rows, width, generator=draw), 1)
    rounds, likeness = Rounds(picture, metric), cosine(metric, metric)
    for count in schedule(rows, 1, share):
        order = energy(likeness, 0.5).argsort(descending=True) if heat else torch.arange(len(likeness))
        sources, targets = (order[: 2 * count : 2], order[1 : 2 * count : 2]) if heat else (order[::2], order[1::2])
        left, grown = rounds.match(likeness[sources][:, targets], sources, targets, count)
        assert len(left) == len(likeness) - count == len(rounds.groups.rows) and 0 < len(grown) <= count
        assert torch.equal(rounds.means, means_of_all(rounds.groups, metric))
        likeness = renewed(likeness[left][:, left], rounds.means, grown)
        assert (likeness - cosine(rounds.means, rounds.means)).abs().max() <= 2.0**-19
    weights = torch.rand(rows, generator=draw) * (torch.rand(rows, generator=draw) < 0.8)
    for groups in (Groups(torch.where(torch.rand(rows, generator=draw) < 0.2, -1, rounds.groups.owner)), rounds.groups):
        for given_weights in (None, weights):
            assert torch.equal(groups.means(metric, given_weights), means_of_all(groups, metric, given_weights))


def match(owners: Groups, features: Tensor, sources: Tensor, targets: Tensor, count: int) -> Groups:
    rounds = Rounds(plain(features, 1), features)
    assert torch.equal(rounds.groups.owner, owners.owner)
    rounds.match(cosine(features[sources], features[targets]), sources, targets, count)
    return rounds.groups


def test_the_most_similar_pairs_go_first() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.3], [1.0, 0.1], [-1.0, 0.2], [-1.0, -0.4]])
    sources, targets = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])
    assert match(Groups(torch.arange(6)), features, sources, targets, 1).owner.tolist() == [3, 1, 2, 3, 4, 5]
    assert match(Groups(torch.arange(6)), features, sources, targets, 2).owner.tolist() == [3, 1, 3, 3, 4, 5]
    assert match(Groups(torch.arange(6)), features, sources, targets, 3).owner.tolist() == [3, 1, 3, 3, 5, 5]


def test_equal_rows_have_equal_cosines_and_zeros_have_none() -> None:
    rows = torch.randn(1, 777, generator=torch.Generator().manual_seed(0)).expand(500, 777)
    assert (cosine(rows, rows) == 1).all()
    assert (cosine(torch.zeros(3, 5), torch.ones(2, 5)) == 0).all()


def test_schedules() -> None:
    assert schedule(576, 144, 0.5) == [288, 144]
    assert schedule(576, 144, 0.25) == [144, 108, 81, 60, 39]
    assert schedule(3, 1, 0.01) == [1, 1] and schedule(5, 5, 0.5) == []


def test_aim_halves_and_merges_neighbours_that_are_alike() -> None:
    features = torch.eye(8).repeat_interleave(2, dim=0)
    rows, merged = run("aim", plain(features, 8))
    assert rows == list(range(1, 16, 2)) and torch.equal(merged, torch.eye(8))
    assert run("aim", plain(torch.randn(576, 4), 288))[0] == list(range(1, 576, 2))
    assert run("aim", plain(torch.randn(576, 4), 144))[0] == list(range(3, 576, 4))


@pytest.mark.parametrize("method", ["tome", "pitome", "aim"])
def test_a_dense_cluster_merges_and_rows_that_stand_alone_stay(method: str) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, generator=draw) + 0.1 * torch.randn(100, 64, generator=draw)
    lonely = [7, 30, 31, 66]
    features[lonely] = torch.randn(4, 64, generator=draw)
    rows, merged = run(method, plain(features, 20), per_round=0.1)
    assert set(lonely) <= set(rows)
    for row in lonely:
        assert torch.equal(merged[rows.index(row)], features[row])


def test_tome_looks_at_keys_not_at_features() -> None:
    configured = registry.configure("tome")
    picture = image(configured, 4, grid(8))
    keys = torch.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]]
    picture = replace(picture, taps=dict.fromkeys(picture.taps, keys))
    chosen = configured.select(picture)
    assert [row // 2 for row in chosen.rows.tolist()] == [0, 1, 2, 3] and chosen.features is not None
    torch.testing.assert_close(chosen.features, picture.features.view(4, 2, -1).mean(dim=1))


def test_pitome_energy_is_high_in_a_cluster_and_never_above_the_margin() -> None:
    keys = torch.cat((torch.ones(9, 4), torch.tensor([[1.0, -1.0, 0.0, 0.0]])))
    heat = energy(cosine(keys, keys), 0.9)
    assert heat.argmin() == 9 and (heat[:9] > 0).all()
    others = torch.randn(50, 4)
    assert (energy(cosine(others, others), 1.0) <= 1e-6).all()


def test_pitome_mixes_no_clusters_while_there_are_targets_of_each() -> None:
    draw = torch.Generator().manual_seed(2)
    which = torch.arange(60) // 3 % 2
    features = torch.eye(16)[:2][which] + 0.01 * torch.randn(60, 16, generator=draw)
    rows, merged = run("pitome", plain(features, 30), per_round=0.5)
    assert len(rows) == 30
    assert ((merged[:, :2] > 0.9).sum(dim=1) == 1).all()


def naive(features: Tensor, keep: int, share: float, margin: float | None) -> dict[int, list[int]]:
    """Lists instead of tensors: who stands for whom. `margin`: PiToMe's rule, None: every second row."""
    groups = {row: [row] for row in range(len(features))}
    rounds, left = [], len(features)
    while left > keep:
        rounds.append(min(left - keep, max(1, int(left * share))))
        left -= rounds[-1]
    for number, count in enumerate(rounds):
        mean = {row: features[members].double().mean(dim=0) for row, members in groups.items()}

        def like(one: int, other: int, mean: dict[int, Tensor] = mean) -> float:
            return float(torch.cosine_similarity(mean[one], mean[other], dim=0))

        standing = sorted(groups)
        if margin is not None:
            over = {row: torch.tensor([like(row, other) for other in standing]) for row in standing}
            limit = margin * (1 - number / len(rounds))
            heat = {row: float(torch.nn.functional.elu(over[row] - limit).sum()) for row in standing}
            standing = sorted(standing, key=lambda row: -heat[row])[: 2 * count]
        sources, targets = standing[::2], standing[1::2]
        pairs = [(row, max(targets, key=lambda target: like(row, target))) for row in sources]
        for row, target in sorted(pairs, key=lambda pair: -like(*pair))[:count]:
            groups[target] += groups.pop(row)
    return groups


@pytest.mark.parametrize(("method", "margin"), [("aim", None), ("tome", None), ("pitome", 0.9), ("pitome", 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_several_rounds_against_lists(method: str, margin: float | None, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(5, 8, generator=draw)[torch.arange(30) // 6] + 0.6 * torch.randn(30, 8, generator=draw)
    options = {"per_round": 0.2} if margin is None else {"per_round": 0.2, "margin": margin}
    rows, merged = run(method, plain(features, 9), **options)
    expected = naive(features, 9, 0.2, margin)
    assert rows == sorted(expected)
    torch.testing.assert_close(merged, torch.stack([features[expected[row]].mean(dim=0) for row in rows]))


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.data())
def test_avgpool_cells_are_a_partition(height: int, width: int, data: st.DataObject) -> None:
    layout = Layout.grid(height, width)
    keep = data.draw(st.integers(1, height * width))
    cut = bands(layout, keep)
    assert sum(cells for _, cells in cut) == keep
    assert sorted(torch.cat([band for band, _ in cut]).tolist()) == list(range(height * width))
    rows, _ = run("avgpool", plain(torch.randn(height * width, 3), keep, layout))
    assert len(rows) == keep


@pytest.mark.parametrize(("side", "cells"), [(24, 12), (24, 8), (24, 6), (12, 3), (9, 1)])
def test_avgpool_is_the_usual_one_where_it_divides(side: int, cells: int) -> None:
    features = torch.randn(side * side, 5, generator=torch.Generator().manual_seed(0))
    rows, merged = run("avgpool", plain(features, cells * cells, Layout.grid(side, side)))
    usual = adaptive_avg_pool2d(features.T.view(5, side, side), cells).view(5, -1).T
    torch.testing.assert_close(merged, usual)
    step, middle = side // cells, (side // cells - 1) // 2
    assert rows == [
        (down * step + middle) * side + across * step + middle for down in range(cells) for across in range(cells)
    ]


def test_avgpool_of_a_flat_image_is_flat() -> None:
    _, merged = run("avgpool", plain(torch.full((35, 3), 0.7), 11, Layout.grid(5, 7)))
    torch.testing.assert_close(merged, torch.full((11, 3), 0.7))


def test_avgpool_mixes_no_views() -> None:
    layout = tiled(4, (2, 2), (4, 4), newlines=False)
    rows, merged = run("avgpool", plain(layout.view[:, None].float(), 20, layout))
    assert torch.equal(merged.flatten(), layout.view[rows].float())
    assert int((layout.view[rows] == 0).sum()) == 4
