"""Methods that keep rows and sum up the others: `visionzip`, `vflowopt`, `recoverable`, `token_corr_like`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vision.vision_toy import TOWER, image, tiled
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.image import Image, Layout, Selection
from thriftree.plugins.vision.token_corr_like import distinct
from thriftree.plugins.vision.vflowopt import cell_of

SIDE = 12
GRID = Layout.grid(SIDE, SIDE)
ROWS = SIDE * SIDE


def picture(method: str, keep: int, attention: Tensor, keys: Tensor | None = None, **options: Any) -> Image:
    configured = registry.configure(method, options)
    given = image(configured, keep, GRID)
    keys = given.features if keys is None else keys
    return replace(given, taps={tap: keys if tap.reading == "keys" else attention for tap in configured.taps(TOWER)})


def chosen(method: str, given: Image, **options: Any) -> Selection:
    return registry.configure(method, options).pick(given)


def drawn(seed: int = 0) -> Tensor:
    attention = torch.randn(ROWS, generator=torch.Generator().manual_seed(seed)).exp()
    return attention / attention.sum()


def test_visionzip_keeps_the_best_and_merges_the_others_into_evenly_spaced_ones() -> None:
    attention = drawn()
    given = picture("visionzip", 64, attention)
    ours = chosen("visionzip", given)
    best = set(attention.argsort(descending=True)[:54].tolist())
    others = [row for row in range(ROWS) if row not in best]
    targets = sorted(set(ours.rows.tolist()) - best)
    places = torch.tensor([others.index(row) for row in targets])
    assert len(targets) == 10 and places.diff().min() >= len(others) // 10
    rest = torch.tensor([row for row in others if row not in targets])
    nearest = (given.unit[rest] @ given.unit[targets].T).argmax(dim=1)
    assert ours.features is not None
    for number, target in enumerate(targets):
        went = given.features[rest[nearest == number]]
        expected = (given.features[target] + went.mean(dim=0)) / 2 if len(went) else given.features[target]
        torch.testing.assert_close(ours.features[ours.rows.tolist().index(target)], expected)
    untouched = [row in best for row in ours.rows.tolist()]
    assert torch.equal(ours.features[untouched], given.features[ours.rows[untouched]])


def test_visionzip_without_merged_rows_is_the_ranking() -> None:
    attention = drawn()
    ours = chosen("visionzip", picture("visionzip", 20, attention, contextual=0.0), contextual=0.0)
    assert ours.features is None and ours.rows.tolist() == sorted(attention.topk(20).indices.tolist())


def test_vflowopt_recycles_what_is_dropped_cell_by_cell() -> None:
    attention = drawn()
    given = picture("vflowopt", 20, attention, cell=0.5)
    ours = chosen("vflowopt", given, cell=0.5)
    order = attention.argsort(descending=True)
    cells = cell_of(GRID, 0.5)
    assert torch.equal(cells.view(SIDE, SIDE)[::6, ::6], torch.tensor([[0, 1], [2, 3]]))
    single, dropped = order[:16], order[16:]
    assert ours.features is not None
    for cell in range(4):
        members = dropped[cells[dropped] == cell]
        place = ours.rows.tolist().index(int(members[0]))
        mean = attention[members] @ given.features[members] / attention[members].sum()
        torch.testing.assert_close(ours.features[place], mean)
    assert set(single.tolist()) <= set(ours.rows.tolist())


def test_vflowopt_takes_the_cells_that_lose_most() -> None:
    attention = torch.full((ROWS,), 0.001)
    attention[[0, 1, 2, 3, 4]] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0])
    attention[ROWS - 1] = 4.0
    ours = chosen("vflowopt", picture("vflowopt", 3, attention, cell=0.5), cell=0.5)
    assert ours.rows.tolist() == [0, 1, ROWS - 1]
    ours = chosen("vflowopt", picture("vflowopt", 2, attention, cell=1.0), cell=1.0)
    assert ours.rows.tolist() == [0, 1]


def test_vflowopt_fills_up_where_cells_have_nothing_to_lose() -> None:
    attention = torch.zeros(ROWS)
    where = cell_of(GRID, 0.5)
    attention[where != 3] = 1.0
    keep = int((where != 3).sum()) + 10
    ours = chosen("vflowopt", picture("vflowopt", keep, attention, cell=0.5), cell=0.5)
    assert len(ours.rows) == keep
    assert int((where[ours.rows] != 3).sum()) == keep - 10


def recoverable(given: Image, **options: Any) -> list[int]:
    rows: list[int] = chosen("recoverable", given, **options).rows.tolist()
    return rows


def test_the_question_recovers_what_nothing_looks_at() -> None:
    attention = drawn()
    attention[[60, 61]] = 0.0
    given = picture("recoverable", 20, attention)
    features = given.features.clone()
    features[[60, 61]] = torch.tensor([5.0, -3, 0, 0, 2, 0, 0, 1])
    given = replace(given, features=features)
    word, filler = features[60:61], torch.randn(4, 8, generator=torch.Generator().manual_seed(4)) * 0.1
    asked = replace(given, text=torch.cat((filler[:2], word, filler[2:])))
    assert {60, 61} <= set(recoverable(asked))
    assert not {60, 61} & set(recoverable(replace(given, text=filler), textual=0.0, visual=0.9))
    best = set(attention.topk(12).indices.tolist())
    assert best <= set(recoverable(asked))


def test_without_a_question_attention_has_its_share() -> None:
    attention = drawn()
    given = picture("recoverable", 20, attention)
    for text in (None, torch.zeros(0, 8)):
        assert set(attention.topk(18).indices.tolist()) <= set(recoverable(replace(given, text=text)))


def test_a_centre_gets_its_neighbours_by_their_attention() -> None:
    attention = drawn()
    given = replace(picture("recoverable", 1, attention), text=None)
    options = {"visual": 0.0, "textual": 0.0, "neighbours": 5}
    ours = chosen("recoverable", given, **options)
    centre = int(attention.argmax())
    others = [row for row in range(ROWS) if row != centre]
    near = (given.unit[others] @ given.unit[centre]).argsort(descending=True)[:5]
    rows = torch.tensor(others)[near]
    assert ours.rows.tolist() == [centre] and ours.features is not None
    torch.testing.assert_close(ours.features[0], given.features[centre] + attention[rows] @ given.features[rows])


def test_shares_above_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^textual: "):
        registry.configure("recoverable", {"visual": 0.8, "textual": 0.3}).check(TOWER)
    registry.configure("recoverable", {"visual": 0.7, "textual": 0.3}).check(TOWER)


def test_outliers_of_attention_stay() -> None:
    attention = torch.linspace(1.0, 1.5, ROWS)
    planted = [3, 77, 130]
    attention[planted] = torch.tensor([5.0, 4.0, 6.0])
    for keep in (3, 10, 60):
        ours = chosen("token_corr_like", picture("token_corr_like", keep, attention))
        assert set(planted) <= set(ours.rows.tolist()) and ours.features is not None
        for row in planted:
            assert torch.equal(ours.features[ours.rows.tolist().index(row)], picture("aim", 1, attention).features[row])


def test_a_tile_that_repeats_itself_gets_fewer_rows() -> None:
    configured = registry.configure("token_corr_like")
    layout = tiled(6, (1, 2), (6, 6), newlines=False)
    given = image(configured, 30, layout)
    keys = torch.randn(108, 32, generator=torch.Generator().manual_seed(0))
    flat = (layout.view == 1) & (layout.col >= 6)
    keys[flat] = 1.0
    taps = {tap: keys if tap.reading == "keys" else torch.ones(108) for tap in given.taps}
    rows = configured.pick(replace(given, taps=taps)).rows
    assert int(flat[rows].sum()) <= 1


def test_the_draw_follows_the_seed_and_the_attention() -> None:
    attention = torch.ones(ROWS)
    attention[: ROWS // 2] = 0.7
    first = picture("token_corr_like", 40, attention)
    rows = [set(chosen("token_corr_like", replace(first, seed=seed)).rows.tolist()) for seed in (1, 2)]
    assert rows[0] != rows[1]
    total = sum(
        sum(row >= ROWS // 2 for row in chosen("token_corr_like", replace(first, seed=seed)).rows.tolist())
        for seed in range(30)
    )
    assert 0.52 < total / (30 * 40) < 0.66  # 1 / 1.7 = 0.588 but for the rows that run out


def test_distinct() -> None:
    assert distinct(torch.ones(9, 4), 0.8) == pytest.approx(1.0)
    assert distinct(torch.eye(7), 0.8) == pytest.approx(7.0)
    assert distinct(torch.eye(3).repeat(5, 1), 0.8) == pytest.approx(3.0)
    assert distinct(torch.zeros(0, 4), 0.8) == 0.0
