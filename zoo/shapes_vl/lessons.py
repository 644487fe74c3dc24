"""Scenes and questions as arrays: what the tower learns from, and what the decoder learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.random import Generator

from thriftree.zoo.shapes_vl import draw, words
from thriftree.zoo.shapes_vl.questions import ask_many
from thriftree.zoo.shapes_vl.scenes import CHARACTERS, COLOURS, GRID, SHAPES, SIDE, Scene, compose

_COLOURS = {name: i for i, name in enumerate(COLOURS)}
_NOTHING = -100  # no loss here


@dataclass(frozen=True)
class Lesson:
    """A drawn scene with its labels. `patches`: [GRID * GRID, ...] per label."""

    scene: Scene
    pixels: np.ndarray  # [SIDE, SIDE, 3] bytes
    patches: dict[str, np.ndarray]
    names: np.ndarray


def lesson(seed: int) -> Lesson:
    scene = compose(seed)
    owner = draw.owners(scene).reshape(-1)
    text = scene.writing.text if scene.writing else ""
    count = len(scene.things)
    what = [0] + [1 + SHAPES.index(t.shape) for t in scene.things]
    what += [1 + len(SHAPES) + CHARACTERS.index(c) for c in text]
    colour = [0] + [1 + _COLOURS[t.colour] for t in scene.things] + [0] * len(text)
    order = [0] * (1 + count) + list(range(1, 1 + len(text)))
    w = scene.writing
    spots = [(0.0, 0.0)] + [(t.x, t.y) for t in scene.things]
    spots += [(w.x + i * w.step, w.y) for i in range(len(text))] if w else []
    middle = np.zeros(GRID * GRID, np.float32)
    middle[[row * GRID + column for column, row in draw.middles(scene)]] = 1
    patches = {
        "what": np.array(what, np.int16)[owner],
        "colour": np.array(colour, np.int16)[owner],
        "order": np.array(order, np.int16)[owner],
        "middle": middle,
        "where": (np.array(spots, np.float32) / SIDE - 0.5)[owner] * 2,
    }
    return Lesson(scene, np.asarray(draw.render(scene)), patches, _names(scene, text))


def _names(scene: Scene, text: str) -> np.ndarray:
    held = np.zeros(len(COLOURS) * len(SHAPES) + len(CHARACTERS), np.float32)
    held[[_COLOURS[t.colour] * len(SHAPES) + SHAPES.index(t.shape) for t in scene.things]] = 1
    held[[len(COLOURS) * len(SHAPES) + CHARACTERS.index(c) for c in text]] = 1
    return held


@dataclass(frozen=True)
class Batch:
    """Several questions behind each picture, in one row; arrays, or tensors.

    `ids`, `position`, `block`, `label`: [B, T]; a block is -1 for the shared beginning, 0.. for the questions, -2 for
    padding. `rows`: which visual tokens the row holds, [B, n].
    """

    ids: Any
    position: Any
    block: Any
    label: Any
    rows: Any
    chained: Any  # [B]: a conversation, each question sees those before it

    def on(self, device: str) -> Batch:
        """The same, as tensors there."""
        import torch

        return Batch(*(torch.as_tensor(getattr(self, part.name), device=device) for part in fields(self)))


def visible(shown: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Visual tokens of a batch, [B, n], ascending: all that are `shown` [B, N], and `share` of the rest at random.

    So the decoder learns to read any subset that still holds the answer, and does not lean on the places in the row.
    """
    most = int(shown.sum(1).max())
    count = most + round(share * (shown.shape[1] - most))
    order = np.argsort(rng.random(shown.shape) - shown, axis=1)[:, :count]
    return np.sort(order, axis=1)


class Writer:
    """Makes batches; remembers what each sentence is in tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self._known: dict[str, list[int]] = {}
        self.line = self._encode("\n").ids

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._encode(text).ids
        return self._known[text]

    def batch(
        self, scenes: Sequence[Scene], shown: np.ndarray, each: int, rng: Generator, share: float, chained: float = 0.25
    ) -> Batch:
        """`each` questions about each of `scenes`, of which patches [B, N] are `shown`."""
        rows = visible(shown, share, rng)
        talks = rng.random(len(scenes)) < chained
        written = [self._row(one, each, rng, rows.shape[1], bool(t)) for one, t in zip(scenes, talks, strict=True)]
        length = -(-max(len(row[0]) for row in written) // 8) * 8  # attention kernels of GPUs want it so
        fill = (words.PAD, 0, -2, _NOTHING)
        ids, place, block, label = (
            np.array([row[part] + [fill[part]] * (length - len(row[part])) for row in written]) for part in range(4)
        )
        return Batch(ids, place, block, label, rows, talks)

    def _row(self, scene: Scene, each: int, rng: Generator, pictures: int, talk: bool) -> list[list[int]]:
        ids = [words.BEGIN, words.USER] + [words.IMAGE] * pictures + self.line
        start = len(ids)
        place, block, label = list(range(start)), [-1] * start, [_NOTHING] * start
        for number, question in enumerate(ask_many(scene, each, rng)):
            asked = ([words.USER] if talk and number else []) + self.ids(question.text) + [words.ASSISTANT]
            answer = [*self.ids(question.answer), words.END]
            ids += asked + answer
            first = place[-1] + 1 if talk else start
            place += range(first, first + len(asked) + len(answer))
            block += [number] * (len(asked) + len(answer))
            label += [_NOTHING] * len(asked) + answer
        return [ids, place, block, label]
