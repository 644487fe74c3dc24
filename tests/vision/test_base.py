"""Counts, and row separators apart from patches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from thriftree.plugins.vision.base import Method, best, kept
from thriftree.plugins.vision.image import Image, Layout, Selection


@dataclass(frozen=True)
class Last(Method):
    """The last rows stay."""

    def score(self, image: Image) -> Tensor:
        return torch.arange(float(image.features.shape[0]))


@dataclass(frozen=True)
class Doubled(Last):
    """Rows come back changed."""

    def select(self, image: Image) -> Selection:
        rows = super().select(image).rows
        return Selection(rows, 2 * image.features[rows])


def anyres(height: int, width: int, thumb: int) -> Layout:
    """A square thumbnail, then rows of tiles that each end in a separator."""
    first = Layout.grid(thumb, thumb)
    at = torch.arange(height * (width + 1))
    row, col = at // (width + 1), at % (width + 1)
    return Layout(
        view=torch.cat((first.view, torch.ones_like(at))),
        row=torch.cat((first.row, row)),
        col=torch.cat((first.col, col)),
        newline=torch.cat((first.newline, col == width)),
        tiles=(2, 1),
    )


def image(layout: Layout, keep: int) -> Image:
    rows = len(layout.view)
    return Image(torch.arange(1.0, rows + 1)[:, None].expand(rows, 3), keep, layout)


@pytest.mark.parametrize(
    ("rows", "keep", "keep_tokens", "count"),
    [
        (576, None, None, 576),
        (576, 0.25, None, 144),
        (576, 1.0, None, 576),
        (576, 0.0001, None, 1),
        (10, 0.25, None, 3),  # 2.5: halves up
        (10, 0.15, None, 2),
        (576, None, 64, 64),
        (16, None, 64, 16),
        (1, 0.1, None, 1),
    ],
)
def test_kept(rows: int, keep: float | None, keep_tokens: int | None, count: int) -> None:
    assert kept(rows, keep, keep_tokens) == count


def test_of_equal_scores_the_first_stay_and_rows_ascend() -> None:
    assert best(torch.tensor([0.0, 2, 1, 2, 1]), 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("method", [Last(), Doubled()])
def test_every_count_of_an_image_with_separators(method: Method) -> None:
    layout = anyres(4, 3, 2)  # 4 + 12 patches, 4 separators
    for keep in range(1, 21):
        chosen = method.pick(image(layout, keep))
        assert len(chosen.rows) == keep and chosen.rows.diff().gt(0).all()
        separators = int(layout.newline[chosen.rows].sum())
        assert separators == (4 if keep >= 16 else 0)
        features = image(layout, keep).features[chosen.rows] if chosen.features is None else chosen.features
        changed = features[:, 0] != chosen.rows + 1
        assert changed.any() == (isinstance(method, Doubled) and keep < 20)
        assert not changed[layout.newline[chosen.rows]].any()  # separators are never merged


def test_more_rows_than_patches_takes_separators() -> None:
    layout = anyres(12, 1, 1)  # 13 patches, 12 separators
    for keep in range(1, 26):
        chosen = Last().pick(image(layout, keep)).rows
        assert len(chosen) == keep
        assert int(layout.newline[chosen].sum()) == max(0, keep - 13)


def test_shape_of_views() -> None:
    layout = anyres(4, 3, 2)
    assert layout.shape(0) == (2, 2) and layout.shape(1) == (4, 3)
    assert Layout.grid(3, 5).shape(1) == (0, 0)
