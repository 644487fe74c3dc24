"""Scenes, pictures, questions: the same everywhere, and answers that the picture bears out."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.zoo.shapes_vl import draw
from thriftree.zoo.shapes_vl.items import held_out
from thriftree.zoo.shapes_vl.questions import KINDS, ask_many
from thriftree.zoo.shapes_vl.scenes import COLOURS, GRID, HELD_OUT, PATCH, SHAPES, SIDE, STYLES, Scene, Thing, compose
from thriftree.zoo.shapes_vl.train import Recipe

SEEDS = st.integers(0, 1 << 48)
STYLE = st.sampled_from(sorted(STYLES))


def box(x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    found = [box(t.x, t.y, t.size, t.size) for t in scene.things]
    if (w := scene.writing) is not None:
        wide = w.step * len(w.text)
        found.append(box(w.x - w.step / 2 + wide / 2, w.y, wide, PATCH))
    return found


@given(SEEDS, STYLE)
def test_a_scene_is_what_its_style_says(seed: int, style: str) -> None:
    scene, ranges = compose(seed, style), STYLES[style]
    assert scene == compose(seed, style)
    assert 2 <= len(scene.things) <= ranges.things[1]
    assert len({(t.shape, t.colour) for t in scene.things}) == len(scene.things)
    assert all(ranges.size[0] * PATCH <= t.size <= ranges.size[1] * PATCH for t in scene.things)
    assert all(ranges.contrast[0] <= t.contrast <= ranges.contrast[1] for t in scene.things)
    for left, top, right, bottom in boxes(scene):
        assert -1 <= left < right <= SIDE + 1 and -1 <= top < bottom <= SIDE + 1
    for a, b in combinations(boxes(scene), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "they overlap"


@given(SEEDS, STYLE)
def test_a_picture_shows_its_things(seed: int, style: str) -> None:
    scene = compose(seed, style)
    pixels = np.asarray(draw.render(scene), dtype=float)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pixels == np.asarray(draw.render(scene))).all()
    owner = draw.owners(scene)
    for number, thing in enumerate(scene.things, 1):
        x = thing.x + (thing.size * 0.38 if thing.shape == "ring" else 0)
        seen = pixels[round(thing.y) - 1 : round(thing.y) + 1, round(x) - 1 : round(x) + 1].mean((0, 1))
        ground, colour = np.array(scene.ground), np.array(COLOURS[thing.colour])
        expected = ground + thing.contrast * (colour - ground)
        thin = thing.shape == "ring" and thing.size == PATCH
        assert np.abs(seen - expected).max() < (110 if thin else 45), (thing, seen, expected)
        rows, columns = np.where(owner == number)
        assert len(rows) >= 1
        assert (np.abs((columns + 0.5) * PATCH - thing.x) <= (thing.size + PATCH) / 2 + 1).all()
        assert (np.abs((rows + 0.5) * PATCH - thing.y) <= (thing.size + PATCH) / 2 + 1).all()
    letters = len(scene.writing.text) if scene.writing else 0
    assert set(np.unique(owner)) - {0} == set(range(1, 1 + len(scene.things) + letters))
    assert owner.shape == (GRID, GRID)


def fitting(scene: Scene, words: str) -> list[Thing]:
    """The things that every colour and every shape in `words` fits."""
    colours = re.findall("|".join(COLOURS), words)
    shapes = re.findall("|".join(SHAPES), words)
    return [t for t in scene.things if all(t.colour == c for c in colours) and all(t.shape == s for s in shapes)]


def truth(scene: Scene, question: str) -> str | None:
    """The answer worked out from the question's words alone; None where no answer or more than one is right."""
    found = fitting(scene, question)
    match question.split()[:2]:
        case ["How", "many"]:
            return str(len(found))
        case ["Is", "there"]:
            return "yes" if found else "no"
        case ["What", "colour"]:
            return found[0].colour if len(found) == 1 else None
        case ["What", "shape"]:
            return found[0].shape if len(found) == 1 else None
        case ["Where", "is"]:
            (thing,) = found
            return f"{'top' if thing.y < SIDE / 2 else 'bottom'} {'left' if thing.x < SIDE / 2 else 'right'}"
        case ["Is", "the"]:
            ((one,), (other,)) = (fitting(scene, part) for part in re.split("left or right|above or below", question))
            if "left" in question:
                return "left" if one.x < other.x else "right"
            return "above" if one.y < other.y else "below"
    assert question == "What does the text say?"
    return scene.writing.text if scene.writing else None


@given(SEEDS, STYLE)
def test_answers_are_right(seed: int, style: str) -> None:
    scene = compose(seed, style)
    for question in ask_many(scene, 20, np.random.default_rng(seed)):
        assert truth(scene, question.text) == question.answer, question


def test_answers_cannot_be_guessed() -> None:
    """No answer of a kind is given more than 60 % of the time."""
    items = held_out(700)
    assert Counter(item.kind for item in items) == dict.fromkeys(KINDS, 100)
    for kind in KINDS:
        answers = Counter(item.answer for item in items if item.kind == kind)
        assert answers.most_common(1)[0][1] <= 60, (kind, answers)


def test_held_out_scenes_are_held_out() -> None:
    assert Recipe().scenes < HELD_OUT
    items = held_out(280)
    assert len({item.scene for item in items}) == 280
    assert all(item.scene >= HELD_OUT for item in items)
    assert Counter((item.kind, item.style) for item in items) == dict.fromkeys(
        [(kind, style) for kind in KINDS for style in STYLES], 10
    )
    again = held_out(280)
    assert [(i.scene, i.question, i.image.tobytes()) for i in items] == [
        (i.scene, i.question, i.image.tobytes()) for i in again
    ]
    other = held_out(280, seed=1)
    assert not {item.scene for item in other} & {item.scene for item in items}
    assert {item.style for item in held_out(9, kinds=["text"], styles=["tiny"])} == {"tiny"}
    with pytest.raises(ValueError, match="no kind or style colours"):
        held_out(1, kinds=["colours"])
