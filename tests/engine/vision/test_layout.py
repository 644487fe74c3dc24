"""Where rows of tiled images stand, by the models' own arrangement of numbered patches; and small parts, no engine."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.processing.processor import PromptUpdateDetails

from thriftree.plugins.engine.vision import layout, processor
from thriftree.plugins.engine.vision.plan import Plan, read, read_all
from thriftree.plugins.engine.vision.processor import _seed, shrunk
from thriftree.plugins.engine.vision.selection import _picked, parts
from thriftree.plugins.engine.vision.support import Settings
from thriftree.plugins.engine.vision.wish import Pruned, Wish
from thriftree.plugins.vision.image import Image, Layout
from thriftree.plugins.vision.request import canonical
from thriftree.zoo.tiny_vision import FAMILIES

pytestmark = pytest.mark.engine

NAMES = {"llava_next": "LlavaNextForConditionalGeneration", "llava_onevision": "LlavaOnevisionForConditionalGeneration"}
SPEC = canonical({"method": "stride", "keep": 0.5})


def model(module: str) -> Any:
    """A model without weights: its arrangement reads the config alone."""
    made = object.__new__(getattr(import_module(f"vllm.model_executor.models.{module}"), NAMES[module]))
    family = FAMILIES[module.replace("_", "-")]
    points, vision = family.config["image_grid_pinpoints"], SimpleNamespace(**family.vision)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=points, model_type=module)
    object.__setattr__(made, "config", config)
    return made


def numbered(made: Any, down: int, right: int) -> torch.Tensor:
    """``[tiles, patches, 2]``: where each patch of the tiles stands in all of them together; first the thumbnail."""
    side = made.config.vision_config.image_size // 14
    at = torch.arange(side * side)
    one = torch.stack((at // side, at % side), dim=-1)
    tiles = [one + side * torch.tensor([y, x]) for y in range(down) for x in range(right)]
    return torch.stack([one, *tiles]).float()


@pytest.mark.parametrize("module", list(NAMES))
@pytest.mark.parametrize("size", [(120, 320), (168, 168), (300, 100), (211, 133)])
def test_tiles_stand_where_the_model_puts_them(module: str, size: tuple[int, int]) -> None:
    made, pixels = model(module), torch.tensor(size)
    down, right = layout._tile_grid(made, pixels)
    place = layout.tiled(made, pixels, down * right + 1)
    rows = layout.arranged(made, pixels, numbered(made, down, right), newline=-1.0)
    assert place.tiles == (down, right)
    assert place.newline.tolist() == (rows == -1).all(-1).tolist()
    patches = ~place.newline
    base, grid = patches & (place.view == 0), patches & (place.view == 1)
    assert torch.equal(torch.stack((place.row, place.col), -1)[base].float(), numbered(made, 1, 1)[0])
    moved = rows[grid] - torch.stack((place.row, place.col), -1)[grid]
    assert (moved == moved[0]).all(), "padding is cut off at the edges, and nothing else moves"
    height, width = place.shape(1)
    assert int(place.newline.sum()) == height
    assert place.col[place.newline].tolist() == [width] * height
    assert place.row[place.newline].tolist() == list(range(height))


def test_large_pictures_are_interpolated() -> None:
    made, size = model("llava_onevision"), torch.tensor([224, 224])
    made.config.image_grid_pinpoints = [[224, 224]]
    place = layout.tiled(made, size, 17)
    rows = layout.arranged(made, size, numbered(made, 4, 4), newline=-1.0)
    grid = (place.view == 1) & ~place.newline
    height, width = place.shape(1)
    assert len(rows) == len(place.row) and height == width
    scale = 16 / height
    assert (rows[grid][:, 0] - ((place.row[grid] + 0.5) * scale - 0.5)).abs().max() < 0.01


def test_squares_and_grids() -> None:
    assert layout.square(144).shape() == (12, 12)
    assert layout.square(7).shape() == (1, 7)
    assert layout.of_grid(torch.tensor([1, 8, 12]), 2).shape() == (4, 6)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 60))
def test_parts_hold_as_much_as_the_tower_takes(rows: list[int], budget: int) -> None:
    runs = list(parts(rows, budget))
    assert [index for start, end in runs for index in range(start, end)] == list(range(len(rows)))
    for start, end in runs:
        assert end == start + 1 or sum(rows[start:end]) <= budget
    for start, end in runs[:-1]:
        assert sum(rows[start : end + 1]) > budget, "the next one would have had room"


def test_plans_come_back() -> None:
    plans = [Plan(576, 144, SPEC, 3, (5, 6)), Plan(9, 9)]
    data = [plan.elem().data for plan in plans]
    assert read_all(data) == plans and read(data[0]).prunes and not read(data[1]).prunes
    field = plans[0].elem().field
    assert field.keep_on_cpu
    assert read_all(field.reduce_data([plans[0].elem(), plans[0].elem()])) == [plans[0]] * 2


def test_structure_around_rows_stays() -> None:
    content = PromptUpdateDetails.select_token_id([1, 9, 9, 2, 9, 9, 3], 9)
    less = shrunk(content, Plan(4, 3, SPEC), "stride")
    assert less.full == [1, 9, 9, 2, 9, 3] and less.pruned == Pruned(4, 3, "stride")
    assert less.is_embed is not None and int(less.is_embed(less.full).sum()) == 3
    whole = shrunk(PromptUpdateDetails.from_seq([9] * 4), Plan(4, 4), "stride")
    assert whole.full == [9] * 4 and whole.pruned == Pruned(4, 4, None)


def test_positions_stay_within_the_rotary_cache() -> None:
    """One row of an image of 30 x 4 takes 30 positions; a prompt of many of them runs out."""
    config = SimpleNamespace(hf_config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    item: Any = {"image_grid_thw": SimpleNamespace(data=torch.tensor([1, 8, 60]))}
    assert processor._stretch(item, Plan(120, 1, SPEC), config) == 29
    assert processor._stretch(item, Plan(120, 40, SPEC), config) == 0
    assert processor._stretch(item, Plan(120, 120), config) == 0
    assert processor._stretch({}, Plan(120, 1, SPEC), config) == 0
    call = processor._Call({"method": "stride", "keep_tokens": 1}, True, True, Wish("off"))
    full = SimpleNamespace(_settings=Settings(room=60))
    processor.PruningProcessorMixin._check_positions(full, call, 60)
    with pytest.raises(VLLMValidationError, match=r"thrift\.vision\.keep_tokens: .*61 beyond .*room for 60"):
        processor.PruningProcessorMixin._check_positions(full, call, 61)
    processor.PruningProcessorMixin._check_positions(SimpleNamespace(_settings=Settings()), call, 10**6)


def test_seeds_are_of_the_picture_and_the_settings() -> None:
    pixels = torch.rand(3, 64, 64)
    other = pixels.clone()
    other[0, 0, 0] += 1
    seeds = {_seed(pixels, SPEC), _seed(other, SPEC), _seed(pixels, "x"), _seed(pixels.bfloat16(), SPEC)}
    assert len(seeds) == 4 and _seed(pixels.clone(), SPEC) == _seed(pixels, SPEC)


def test_a_method_that_fails_costs_one_image(caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan(8, 4, canonical({"method": "hiprune", "keep": 0.5}))
    chosen = _picked(plan, Image(torch.rand(8, 4), 4, Layout.grid(2, 4)))  # without the readings that it needs
    assert chosen.rows.tolist() == [0, 2, 4, 6] and "hiprune" in caplog.text
