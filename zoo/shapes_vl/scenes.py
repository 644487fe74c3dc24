"""Synthetic scenes: coloured shapes and a short text on a noisy ground, drawn by numpy and PIL from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.random import Generator, default_rng

SIDE, PATCH = 96, 8
GRID = SIDE // PATCH
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 222, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "white": (246, 246, 246),
}
_LOOSE = 1.0  # pixels that a thing may be off the grid of patches
CHARACTERS = "ABCEHKLPTXYZ234579"  # few of them can be taken for another
HELD_OUT = 1 << 40  # scenes with seeds from here on are never trained on


@dataclass(frozen=True)
class Style:
    """Ranges that scenes are drawn from; sizes in patches, contrast 1 = the pure colour, 0 = the ground."""

    things: tuple[int, int]
    size: tuple[int, int]
    contrast: tuple[float, float] = (1.0, 1.0)


#: What pruning may hurt has a style of its own.
STYLES = {
    "plain": Style((3, 5), (2, 3)),
    "low-contrast": Style((3, 5), (2, 3), (0.3, 0.45)),
    "tiny": Style((3, 5), (1, 1)),
    "many": Style((7, 9), (2, 2)),
}


@dataclass(frozen=True)
class Thing:
    """One shape: centre and size in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    size: int
    contrast: float


@dataclass(frozen=True)
class Writing:
    """One to three characters in a row; `x`, `y`: the middle of the first, `step`: from one to the next."""

    text: str
    x: float
    y: float
    contrast: float
    step: float = float(PATCH)


@dataclass(frozen=True)
class Scene:
    """All there is to know about a picture but its noise, which comes from the seed."""

    seed: int
    style: str
    ground: tuple[int, int, int]
    things: tuple[Thing, ...]
    writing: Writing | None


def compose(seed: int, style: str | None = None) -> Scene:
    """The scene of `seed`. No colour-and-shape pair occurs twice in it, and nothing overlaps."""
    rng = default_rng(seed)
    style = style or str(rng.choice(list(STYLES)))
    ranges = STYLES[style]
    level = rng.integers(85, 150)
    red, green, blue = (int(c) for c in level + rng.integers(-12, 13, 3))
    boxes: list[tuple[int, int, int, int]] = []
    writing = _writing(rng, ranges, boxes) if rng.random() < 0.7 else None
    things = []
    for shape, colour in _pairs(rng, int(rng.integers(ranges.things[0], ranges.things[1] + 1))):
        size = int(rng.integers(ranges.size[0], ranges.size[1] + 1))
        at = _place(rng, size, size, boxes)
        if at is not None:
            x, y = at[0] + rng.uniform(-_LOOSE, _LOOSE), at[1] + rng.uniform(-_LOOSE, _LOOSE)
            things.append(Thing(shape, colour, x, y, size * PATCH, float(rng.uniform(*ranges.contrast))))
    return Scene(seed, style, (red, green, blue), tuple(things), writing)


def _pairs(rng: Generator, count: int) -> list[tuple[str, str]]:
    """Few colours or few shapes make the counts interesting; `count` pairs, none twice."""
    colours = rng.permutation(list(COLOURS))[: rng.integers(2, len(COLOURS) + 1)]
    shapes = rng.permutation(SHAPES)[: rng.integers(max(2, -(-count // len(colours))), len(SHAPES) + 1)]
    pairs = [(str(shape), str(colour)) for shape in shapes for colour in colours]
    return [pairs[i] for i in rng.permutation(len(pairs))[:count]]


def _place(rng: Generator, wide: int, high: int, boxes: list[Any]) -> tuple[float, float] | None:
    """The middle, in pixels, of a box of whole patches that touches none of `boxes`, which it joins.

    None where 60 tries find no room.
    """
    for _ in range(60):
        left, top = int(rng.integers(GRID - wide + 1)), int(rng.integers(GRID - high + 1))
        if all(left > a + w or a > left + wide or top > b + h or b > top + high for a, b, w, h in boxes):
            boxes.append((left, top, wide, high))
            return (left + wide / 2) * PATCH, (top + high / 2) * PATCH
    return None


def _writing(rng: Generator, ranges: Style, boxes: list[Any]) -> Writing | None:
    text = "".join(rng.choice(list(CHARACTERS), int(rng.integers(1, 4))))
    at = _place(rng, len(text), 1, boxes)
    if at is None:
        return None
    contrast = min(1.0, 0.25 + float(rng.uniform(*ranges.contrast)))  # strokes are thin
    return Writing(text, at[0] - PATCH * (len(text) - 1) / 2, at[1], contrast)
