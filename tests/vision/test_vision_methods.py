"""What holds for every method: exact counts, ascending rows, the same ones every time, never NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vision.vision_methods import METHODS, each_method
from tests.vision.vision_toy import alike, blank, grid, image, tiled
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.base import kept
from thriftree.plugins.vision.image import Image, Selection

MERGING = [row for row in METHODS if registry.describe(row[0]).merges]
LAYOUTS = [
    tiled(4, (2, 2), (4, 4)),
    tiled(6, (1, 3), (6, 6)),
    tiled(5, (3, 1), (3, 5), newlines=False),
    tiled(1, (2, 1), (1, 1)),
    tiled(12, (2, 2), (9, 12)),
]


def held(chosen: Selection, image: Image) -> None:
    rows = chosen.rows
    assert rows.dtype == torch.int64 and rows.shape == (image.keep,)
    assert (rows.diff() > 0).all() and rows[0] >= 0 and rows[-1] < len(image.features)
    if chosen.features is not None:
        assert chosen.features.shape == (image.keep, image.features.shape[1])
        assert chosen.features.dtype == image.features.dtype
        assert chosen.features.isfinite().all()


def test_every_method_has_a_row() -> None:
    assert {method for method, _ in METHODS} == set(registry.names())


@each_method
@settings(max_examples=8)
@given(st.integers(1, 1024), st.data())
def test_exactly_as_many_rows_of_any_image(
    method: str, options: dict[str, Any], rows: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, rows))
    given_image = image(registry.configure(method, options), keep, grid(rows), seed=rows)
    held(registry.configure(method, options).select(given_image), given_image)


@pytest.mark.slow
@each_method
def test_exactly_as_many_rows_of_every_image_up_to_1024(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    for rows in range(1, 1025):
        whole = image(configured, 1, grid(rows), seed=rows)
        for keep in {max(1, rows - 1), 1 + (rows * rows * 31 + 7) % rows, kept(rows, 0.11, None)}:
            held(configured.select(replace(whole, keep=keep)), replace(whole, keep=keep))


@each_method
def test_exactly_as_many_rows_of_small_images(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    for rows in (1, 2, 3, 5, 7, 12):
        whole = image(configured, rows, grid(rows))
        for keep in range(1, rows + 1):
            held(configured.select(replace(whole, keep=keep)), replace(whole, keep=keep))


@each_method
@pytest.mark.parametrize("layout", LAYOUTS, ids=["2x2", "1x3", "3x1-plain", "tiny", "wide"])
def test_exactly_as_many_rows_with_tiles_and_separators(method: str, options: dict[str, Any], layout: Any) -> None:
    configured = registry.configure(method, options)
    rows = len(layout.row)
    for share in (0.02, 0.05, 0.11, 0.22, 0.33, 0.5, 0.9, 0.99, 1.0):
        given_image = image(configured, kept(rows, share, None), layout)
        held(configured.pick(given_image), given_image)


@each_method
@pytest.mark.parametrize("change", [alike, blank], ids=["equal rows", "zeros"])
@pytest.mark.parametrize("layout", [grid(1), grid(2), grid(130), LAYOUTS[0]], ids=["1", "2", "130", "tiles"])
def test_nothing_to_tell_rows_apart(
    method: str, options: dict[str, Any], change: Callable[[Image], Image], layout: Any
) -> None:
    configured = registry.configure(method, options)
    for keep in {1, len(layout.row) // 3 or 1, len(layout.row)}:
        given_image = change(image(configured, keep, layout))
        held(configured.pick(given_image), given_image)


@pytest.mark.parametrize("change", [alike, blank], ids=["equal rows", "zeros"])
@pytest.mark.parametrize("method", ["divprune", "dpp", "todre", "fopru", "globalcom2"])
def test_of_equal_rows_the_first(method: str, change: Callable[[Image], Image]) -> None:
    configured = registry.configure(method)
    for rows in (7, 100, 333):
        given_image = change(image(configured, 5, grid(rows), channels=64))
        assert configured.select(given_image).rows.tolist() == [0, 1, 2, 3, 4]


@each_method
def test_the_same_image_gives_the_same_rows(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    first, second = (configured.select(image(configured, 40, grid(150), seed=5)) for _ in range(2))
    assert torch.equal(first.rows, second.rows)
    if first.features is not None and second.features is not None:
        assert torch.equal(first.features, second.features)


@each_method
def test_half_precision_is_scored_in_float32(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    half = image(configured, 30, grid(150))
    half = replace(half, features=half.features.bfloat16(), text=None if half.text is None else half.text.bfloat16())
    full = replace(half, features=half.features.float(), text=None if half.text is None else half.text.float())
    chosen = configured.select(half)
    held(chosen, half)
    assert torch.equal(chosen.rows, configured.select(full).rows)


@each_method
def test_an_image_is_left_as_it_was(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    given_image = image(configured, 30, grid(100))
    before = {tap: values.clone() for tap, values in given_image.taps.items()}, given_image.features.clone()
    configured.select(given_image)
    assert torch.equal(given_image.features, before[1])
    assert all(torch.equal(values, before[0][tap]) for tap, values in given_image.taps.items())


@each_method
def test_methods_that_do_not_merge_return_rows_as_they_are(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    given_image = image(configured, 30, grid(100))
    features = configured.select(given_image).features
    if not configured.merges:
        assert features is None
    else:
        assert features is not None
        assert not torch.equal(features, given_image.features[configured.select(given_image).rows])


@pytest.mark.parametrize(("method", "options"), MERGING, ids=str)
def test_merged_rows_lie_between_those_that_went_in(method: str, options: dict[str, Any]) -> None:
    """All but `recoverable`, which adds to its centres, return means."""
    configured = registry.configure(method, options)
    given_image = image(configured, 30, grid(144))
    features = configured.select(given_image).features
    assert features is not None
    if method != "recoverable":
        assert (features <= given_image.features.max(dim=0).values + 1e-5).all()
        assert (features >= given_image.features.min(dim=0).values - 1e-5).all()


@each_method
def test_all_rows_asked_of_select_itself(method: str, options: dict[str, Any]) -> None:
    configured = registry.configure(method, options)
    given_image = image(configured, 60, grid(60))
    chosen = configured.select(given_image)
    assert chosen.rows.tolist() == list(range(60))
    if chosen.features is not None and method != "recoverable":
        assert torch.equal(chosen.features, given_image.features)
