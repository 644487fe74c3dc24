"""What a benchmark asks: held-out pictures and questions, spread evenly over kinds of question and styles of scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from numpy.random import default_rng
from PIL import Image

from thriftree.zoo.shapes_vl.draw import render
from thriftree.zoo.shapes_vl.questions import KINDS, ask
from thriftree.zoo.shapes_vl.scenes import HELD_OUT, STYLES, compose


@dataclass(frozen=True)
class Item:
    """One picture, one question, its only right answer. `kind`: a key of `KINDS`; `style`: a key of `STYLES`."""

    image: Image.Image
    question: str
    answer: str
    kind: str
    style: str
    scene: int  # the seed

    def right(self, said: str) -> bool:
        """Whether an answer of a model is the right one; space around it does not matter."""
        return said.strip() == self.answer


def held_out(
    count: int, kinds: Sequence[str] = tuple(KINDS), styles: Sequence[str] = tuple(STYLES), seed: int = 0
) -> list[Item]:
    """`count` items of scenes that training never draws; the same for the same arguments, others for another `seed`.

    Every kind comes with every style in turn, and every item has a picture of its own.

    Raises:
        ValueError: a kind or a style that there is not.
    """
    if unknown := [name for name in kinds if name not in KINDS] + [name for name in styles if name not in STYLES]:
        raise ValueError(
            f"no kind or style {', '.join(unknown)}; kinds: {', '.join(KINDS)}; styles: {', '.join(STYLES)}"
        )
    return list(islice(_items(tuple(kinds), tuple(styles), seed), count))


def _items(kinds: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[Item]:
    pairs = [(kind, style) for style in styles for kind in kinds]
    scene, turn = HELD_OUT + seed * (1 << 24), 0
    while True:
        kind, style = pairs[turn % len(pairs)]
        drawn = compose(scene, style)
        question = ask(drawn, kind, default_rng((scene, 2)))
        if question is not None:
            yield Item(render(drawn), question.text, question.answer, kind, style, scene)
            turn += 1
        scene += 1
