"""A count shared out exactly; views and tiles."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vision.vision_toy import tiled
from thriftree.plugins.vision.image import Layout
from thriftree.plugins.vision.parts import parts, split, tile_of

shares = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 50)), min_size=1, max_size=9)


@given(shares, st.integers(0, 500))
def test_the_sum_is_exact_and_no_part_overflows(parts: list[tuple[float, int]], total: int) -> None:
    weights, room = [weight for weight, _ in parts], [size for _, size in parts]
    counts = split(total, weights, room)
    assert sum(counts) == min(total, sum(room))
    assert all(0 <= count <= size for count, size in zip(counts, room, strict=True))


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=9), st.integers(0, 500))
def test_with_room_for_all_within_one_of_the_ideal(weights: list[float], total: int) -> None:
    counts = split(total, weights, [total] * len(weights))
    whole = sum(weights)
    assert all(abs(count - total * weight / whole) < 1 + 1e-6 for count, weight in zip(counts, weights, strict=True))


def test_largest_remainder() -> None:
    assert split(10, [1, 1, 1], [9, 9, 9]) == [4, 3, 3]
    assert split(10, [0.26, 0.35, 0.39], [9, 9, 9]) == [3, 3, 4]
    assert split(7, [3.0, 1.0], [2, 9]) == [2, 5]
    assert split(4, [0.0, 0.0], [3, 3]) == [2, 2]
    assert split(5, [1.0, 0.0], [3, 3]) == [3, 2]


def test_parts_are_the_thumbnail_and_each_tile() -> None:
    layout = tiled(2, (2, 3), (2, 2), newlines=False)
    assert [part.tolist() for part in parts(layout)] == [
        [0, 1, 2, 3],
        *([4 + 12 * down + 2 * across + at for at in (0, 1, 6, 7)] for down in (0, 1) for across in (0, 1, 2)),
    ]
    assert [part.tolist() for part in parts(Layout.grid(2, 2))] == [[0, 1, 2, 3]]


def test_cut_padding_leaves_the_seam_in_the_middle() -> None:
    layout = tiled(2, (2, 1), (4, 4), newlines=False)
    inner = layout.pick((layout.view == 0) | ((layout.row >= 1) & (layout.row < 7)))
    moved = Layout(inner.view, inner.row - inner.view, inner.col, inner.newline, inner.tiles)
    tile = tile_of(moved, 1)[moved.view == 1].reshape(6, 4)
    assert torch.equal(tile, torch.tensor([0, 0, 0, 1, 1, 1])[:, None].expand(6, 4))
