"""A scene as a picture, and which of its patches show what."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thriftree.zoo.shapes_vl.scenes import COLOURS, GRID, PATCH, SIDE, Scene, Thing, Writing

_FINE = 2  # drawn so many times larger, then averaged: smooth edges
_INK = (16, 16, 16)
_NOISE = 5.0  # standard deviation, of 255
_FONT = 11  # its capitals are as high as a patch
_SEEN = 6  # pixels of a patch from which on it shows a thing


def render(scene: Scene) -> Image.Image:
    """The picture, RGB, `SIDE` pixels square; the same for the same scene."""
    large = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), scene.ground)
    pen = ImageDraw.Draw(large)
    for thing in scene.things:
        _shape(pen, thing, _mixed(COLOURS[thing.colour], scene.ground, thing.contrast), scene.ground)
    if scene.writing is not None:
        _letters(pen, scene.writing, [_mixed(_INK, scene.ground, scene.writing.contrast)] * len(scene.writing.text))
    pixels = np.asarray(large.reduce(_FINE), dtype=np.float32)
    rng = np.random.default_rng((scene.seed, 1))
    slope = rng.uniform(-12, 12, 2)
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    shade = slope[0] * across[None, :, None] + slope[1] * across[:, None, None]
    noise = rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32) * _NOISE
    return Image.fromarray(np.clip(pixels + shade + noise, 0, 255).astype(np.uint8))


def owners(scene: Scene) -> np.ndarray:
    """What each patch shows, [GRID, GRID]: 0 the ground, 1.. the things, after them the characters of the text.

    Every thing and every character has a patch at least: the one that `middles` names.
    """
    canvas = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(canvas)
    pen.fontmode = "1"  # numbers do not blend
    for number, thing in enumerate(scene.things, 1):
        _shape(pen, thing, number, 0, fine=1)
    first = len(scene.things) + 1
    if scene.writing is not None:
        _letters(pen, scene.writing, list(range(first, first + len(scene.writing.text))), fine=1)
    total = first + (len(scene.writing.text) if scene.writing else 0)
    patches = np.asarray(canvas).reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID, GRID, -1)
    counts = (patches[..., None] == np.arange(total)).sum(2)
    counts[..., 0] = _SEEN - 1
    seen: np.ndarray = counts.argmax(-1)
    for number, (column, row) in enumerate(middles(scene), 1):
        seen[row, column] = number
    return seen


def middles(scene: Scene) -> list[tuple[int, int]]:
    """Column and row of one patch of each thing, then of each character: its middle one, or the first of the middle."""
    spots = [(thing.x, thing.y) for thing in scene.things]
    if (w := scene.writing) is not None:
        spots += [(w.x + i * w.step, w.y) for i in range(len(w.text))]
    return [(int(x - 3) // PATCH, int(y - 3) // PATCH) for x, y in spots]


def _mixed(colour: tuple[int, ...], ground: tuple[int, ...], contrast: float) -> tuple[int, ...]:
    return tuple(round(g + contrast * (c - g)) for c, g in zip(colour, ground, strict=True))


def _shape(pen: Any, thing: Thing, fill: Any, hole: Any, fine: int = _FINE) -> None:
    x, y, half = thing.x * fine, thing.y * fine, (thing.size - 1) * fine / 2
    box = (x - half, y - half, x + half, y + half)
    if thing.shape in ("circle", "ring"):
        pen.ellipse(box, fill=fill)
        if thing.shape == "ring":
            inner = half * 0.5
            pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=hole)
    elif thing.shape == "square":
        pen.rectangle((x - half * 0.9, y - half * 0.9, x + half * 0.9, y + half * 0.9), fill=fill)
    elif thing.shape == "cross":
        arm = half * 0.36
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half * 0.85), (x - half, y + half * 0.85)], fill=fill)
    else:
        radii = (half * 1.1, half * 0.45)
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        pen.polygon(
            [(x + radii[i % 2] * math.cos(a), y + radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)], fill=fill
        )


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _letters(pen: Any, writing: Writing, fills: list[Any], fine: int = _FINE) -> None:
    font = _font(_FONT * fine)
    for i, (letter, fill) in enumerate(zip(writing.text, fills, strict=True)):
        at = ((writing.x + i * writing.step) * fine, writing.y * fine)
        pen.text(at, letter, fill=fill, font=font, anchor="mm")
