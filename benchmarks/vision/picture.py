"""``python -m thriftree.benchmarks.vision.picture FILE``: what is left of a picture, and the answers from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import default_rng

from thriftree.benchmarks.vision.quality import Model
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.image import Image, Layout
from thriftree.zoo import shapes_vl
from thriftree.zoo.shapes_vl.draw import render
from thriftree.zoo.shapes_vl.items import Item
from thriftree.zoo.shapes_vl.questions import KINDS, ask
from thriftree.zoo.shapes_vl.scenes import GRID, HELD_OUT, PATCH, SIDE, compose

_SCENE, _STYLE, _KEEP = HELD_OUT + 31, "many", 16
_SHOWN = ("divprune", "stride")


def kept(picture: Any, method: str, folder: Path) -> list[int]:
    """The rows of `picture` that `method` keeps, as the engine picks them: behind the projector."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    pixels = AutoProcessor.from_pretrained(folder).image_processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        rows = model.model.multi_modal_projector(seen)[0]
    image = Image(rows, _KEEP, Layout.grid(GRID, GRID), {}, None, 0)
    return [int(row) for row in registry.configure(method).pick(image).rows]


def masked(picture: Any, rows: list[int]) -> np.ndarray:
    """The picture, [SIDE, SIDE, 3], dark where a patch is not among `rows`."""
    pixels = np.asarray(picture).astype(float)
    shown = np.zeros((GRID, GRID, 1))
    shown.reshape(-1)[rows] = 1
    full = shown.repeat(PATCH, 0).repeat(PATCH, 1)
    return np.asarray((full * pixels + (1 - full) * (0.15 * pixels + 12)).astype(np.uint8))


def main(out: Path) -> None:
    """Draws the figure, and ``scene.png`` beside it; prints questions and answers as a table."""
    from matplotlib import pyplot

    scene = compose(_SCENE, _STYLE)
    picture, folder = render(scene), shapes_vl.ensure()
    asked = [question for kind in KINDS if (question := ask(scene, kind, default_rng(7))) is not None]
    items = [Item(picture, one.text, one.answer, one.kind, _STYLE, _SCENE) for one in asked]
    model = Model(str(folder))
    wishes: list[Any] = ["off", *({"method": name, "keep_tokens": _KEEP} for name in _SHOWN)]
    answers = [[said for said, _ in model.ask(items, wish)] for wish in wishes]
    heads = ["question", "right", f"all {GRID * GRID} tokens", *(f"{_KEEP}, `{name}`" for name in _SHOWN)]
    print(f"| {' | '.join(heads)} |")
    print("|---" * (3 + len(_SHOWN)) + "|")
    for number, item in enumerate(items):
        print(f"| {item.question} | {item.answer} | " + " | ".join(column[number] for column in answers) + " |")
    figure, places = pyplot.subplots(1, 1 + len(_SHOWN), figsize=(9, 3.2), dpi=110)
    titles = [f"all {GRID * GRID} visual tokens", *(f"{_KEEP} tokens, {name}" for name in _SHOWN)]
    views = [np.asarray(picture), *(masked(picture, kept(picture, name, folder)) for name in _SHOWN)]
    for place, title, view in zip(places, titles, views, strict=True):
        place.imshow(view, interpolation="nearest", extent=(0, SIDE, SIDE, 0))
        place.set_title(title, fontsize=10)
        place.set_axis_off()
    figure.tight_layout()
    figure.savefig(out)
    picture.save(out.with_name("scene.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
