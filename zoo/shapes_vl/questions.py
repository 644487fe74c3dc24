"""Questions about a scene, whose answers follow from what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from numpy.random import Generator

from thriftree.zoo.shapes_vl.scenes import COLOURS, SHAPES, SIDE, Scene, Thing

_MARGIN = 6.0  # pixels between a thing and the line that its answer turns on
_APART = 12.0
_PLURAL = {"cross": "crosses"}


@dataclass(frozen=True)
class Question:
    """`kind`: a key of `KINDS`."""

    kind: str
    text: str
    answer: str


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _refer(thing: Thing, scene: Scene, rng: Generator) -> str:
    """Words that fit this thing only: both attributes, or one that no other thing has."""
    ways = [_name(thing)]
    if [other.shape for other in scene.things].count(thing.shape) == 1:
        ways.append(thing.shape)
    if [other.colour for other in scene.things].count(thing.colour) == 1:
        ways.append(f"{thing.colour} thing")
    return ways[int(rng.integers(len(ways)))]


def _article(what: str) -> str:
    return f"{'an' if what.startswith('orange') else 'a'} {what}"


def _colour(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    shapes = [thing.shape for thing in scene.things]
    return [(f"What colour is the {t.shape}?", t.colour) for t in scene.things if shapes.count(t.shape) == 1]


def _shape(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    colours = [thing.colour for thing in scene.things]
    return [(f"What shape is the {t.colour} thing?", t.shape) for t in scene.things if colours.count(t.colour) == 1]


def _count(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    """One for each number that occurs, so that small ones do not crowd out the others."""
    colours, shapes = [t.colour for t in scene.things], [t.shape for t in scene.things]
    every = [(f"How many {_PLURAL.get(shape, shape + 's')} are there?", str(shapes.count(shape))) for shape in SHAPES]
    every += [(f"How many {colour} things are there?", str(colours.count(colour))) for colour in COLOURS]
    shuffled = [every[i] for i in rng.permutation(len(every))]
    return list({answer: (text, answer) for text, answer in shuffled}.values())


def _exists(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    """As many yes as no, of pairs, shapes and colours; an absent pair has its colour or its shape from the scene."""
    colours, shapes = {t.colour for t in scene.things}, {t.shape for t in scene.things}
    pairs = {_name(thing) for thing in scene.things}
    near = {f"{c} {s}" for c in COLOURS for s in SHAPES if c in colours or s in shapes} - pairs
    levels = [
        (pairs, near),
        (shapes, set(SHAPES) - shapes),
        ({f"{c} thing" for c in colours}, {f"{c} thing" for c in set(COLOURS) - colours}),
    ]
    there, absent = levels[int(rng.integers(len(levels)))]
    size = min(len(there), len(absent))
    picked = [[sorted(names)[i] for i in rng.permutation(len(names))[:size]] for names in (there, absent)]
    return [
        (f"Is there {_article(what)}?", answer)
        for names, answer in zip(picked, ("yes", "no"), strict=True)
        for what in names
    ]


def _place(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    found = []
    for thing in scene.things:
        right, down = thing.x - SIDE / 2, thing.y - SIDE / 2
        if min(abs(right), abs(down)) >= _MARGIN:
            where = f"{'bottom' if down > 0 else 'top'} {'right' if right > 0 else 'left'}"
            found.append((f"Where is the {_refer(thing, scene, rng)}?", where))
    return found


def _relation(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    found = []
    named = [(thing, _refer(thing, scene, rng)) for thing in scene.things]
    for (one, this), (other, that) in permutations(named, 2):
        if abs(one.x - other.x) >= _APART:
            side = "left" if one.x < other.x else "right"
            found.append((f"Is the {this} left or right of the {that}?", side))
        if abs(one.y - other.y) >= _APART:
            side = "above" if one.y < other.y else "below"
            found.append((f"Is the {this} above or below the {that}?", side))
    return found


def _text(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    return [] if scene.writing is None else [("What does the text say?", scene.writing.text)]


#: Each gives all questions of its kind that have one right answer in this scene.
KINDS: dict[str, Callable[[Scene, Generator], list[tuple[str, str]]]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "place": _place,
    "relation": _relation,
    "text": _text,
}


def ask(scene: Scene, kind: str, rng: Generator) -> Question | None:
    """One question of `kind`, None where the scene has none."""
    choices = KINDS[kind](scene, rng)
    return Question(kind, *choices[int(rng.integers(len(choices)))]) if choices else None


def ask_many(scene: Scene, count: int, rng: Generator) -> list[Question]:
    """`count` questions, kinds drawn evenly."""
    names = list(KINDS)
    found: list[Question] = []
    while len(found) < count:
        question = ask(scene, names[int(rng.integers(len(names)))], rng)
        if question is not None:
            found.append(question)
    return found
