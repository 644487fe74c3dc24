"""Digits on rows and positions of pruned prompts, without an engine."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thriftree.plugins.engine.vision.positions import BASE, CHANNELS, LIMIT, pruned_positions, strip, with_digits


@dataclass(frozen=True)
class Range:
    offset: int
    length: int


@dataclass(frozen=True)
class Feature:
    mm_position: Range
    grid: tuple[int, int]


def stock(tokens: list[int], features: list[Feature]) -> tuple[Tensor, int]:
    """M-RoPE as the papers have it: text on the diagonal, an image's rows on a grid that starts where text stopped."""
    columns: list[tuple[int, int, int]] = []
    after = 0
    at = {feature.mm_position.offset: feature for feature in features}
    index = 0
    while index < len(tokens):
        if index not in at:
            columns.append((after, after, after))
            after, index = after + 1, index + 1
            continue
        height, width = at[index].grid
        assert at[index].mm_position.length == height * width
        columns += [(after, after + y, after + x) for y in range(height) for x in range(width)]
        after, index = after + max(height, width), index + height * width
    return torch.tensor(columns).T, after - len(tokens)


@given(st.lists(st.tuples(st.integers(0, LIMIT - 1), st.integers(0, LIMIT - 1)), min_size=1, max_size=20))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_digits_come_back_in_every_type(dtype: torch.dtype, offsets: list[tuple[int, int]]) -> None:
    wanted = torch.tensor(offsets)
    rows = torch.randn(len(offsets), 8).to(dtype)
    places = torch.ones(len(offsets), dtype=torch.bool)
    (back,), moved = strip([with_digits(rows, wanted)], 8, places)
    assert moved is not None and torch.equal(back, rows) and back.dtype == dtype
    assert torch.equal(moved[1], wanted.T) and torch.equal(moved[0], torch.arange(len(offsets)))


def test_only_rows_with_digits_move() -> None:
    plain, wide = torch.zeros(2, 8), with_digits(torch.ones(3, 8), torch.tensor([[0, 5], [BASE, 1], [2, 2 * BASE + 7]]))
    places = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0], dtype=torch.bool)
    parts, moved = strip([plain, wide], 8, places)
    assert [part.shape for part in parts] == [(2, 8), (3, 8)] and wide.shape == (3, 8 + CHANNELS)
    assert moved is not None
    assert moved[0].tolist() == [5, 6, 7] and moved[1].tolist() == [[0, BASE, 2], [5, 1, 2 * BASE + 7]]
    assert strip([plain], 8, places) == ([plain], None)


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """For each image: text before it, its grid, rows that stay."""
    images = []
    for _ in range(draw(st.integers(0, 4))):
        height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        images.append((draw(st.integers(0, 5)), height, width, draw(st.integers(1, height * width))))
    return images


@given(prompts(), st.integers(0, 4), st.randoms())
def test_pruned_positions_are_the_whole_prompts(
    images: list[tuple[int, int, int, int]], tail: int, random: object
) -> None:
    """Base positions and offsets of any kept rows give the columns of the whole prompt; text stands where it stood."""
    pruned: list[int] = []
    whole: list[int] = []
    features, full, counts, stay, offsets = [], [], [], [], []
    for text, height, width, keep in images:
        rows = height * width
        kept = sorted(random.sample(range(rows), keep))
        pruned += [1] * text
        whole += [1] * text
        stay += [True] * text
        offsets += [(0, 0)] * text
        features.append(Feature(Range(len(pruned), keep), (height, width)))
        full.append(Feature(Range(len(whole), rows), (height, width)))
        counts.append((rows, keep) if keep < rows else None)
        pruned += [9] * keep
        whole += [9] * rows
        stay += [row in kept for row in range(rows)]
        offsets += [(row // width, row % width) if keep < rows else (0, 0) for row in kept]
    pruned, whole, stay = pruned + [1] * tail, whole + [1] * tail, stay + [True] * tail
    offsets += [(0, 0)] * tail
    if not whole:
        return
    positions, delta = pruned_positions(pruned, features, counts, stock)
    positions[1:] += torch.tensor(offsets).T
    right, after = stock(whole, full)
    assert torch.equal(positions, right[:, torch.tensor(stay)])
    assert delta + len(pruned) == after + len(whole)
