"""Texts and questions, the same ones for everybody: facts in play text, plays and maths (`data/README.md`)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
SPLITS = ("dev", "test")
TASKS = ("lookup", "passkey", "plays", "maths")
RETRIEVAL = ("lookup", "passkey")

_DEV = 0.25  # of every file, in front: settings are picked on it, and nothing is reported from it
_TOKENS = {"lookup": 540, "passkey": 500}
_PREFIX, _NEXT = 768, 25  # of plays and maths
# One token each for the default model, and nobody in the plays.
_NAMES = [
    "Anna", "Alice", "Emma", "Sarah", "Sophie", "Julia", "Linda", "Karen", "Nancy",
    "Lisa", "Betty", "Sandra", "Ruth", "Sharon", "Rachel", "Daniel", "David", "Michael",
    "Joseph", "Charles", "Matthew", "Anthony", "Steven", "Andrew", "Kevin", "Brian",
    "Jason", "Jacob", "Eric", "Patrick", "Dennis", "Nathan",
]  # fmt: skip

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Case:
    """`context` is compressed; then comes the question, and the answer is scored token by token."""

    task: str
    context: list[int]
    question: list[int]  # empty for plays and maths
    answer: list[int]


def cases(task: str, split: str, count: int, encode: Encode) -> Iterator[Case]:
    """`count` cases; the first ones are the same whatever the count.

    Raises:
        ValueError: the texts are not long enough for so many.
    """
    if task in RETRIEVAL:
        plays = _part((DATA / "plays.txt").read_text(encoding="utf-8").split("\n"), split)
        make = _lookup if task == "lookup" else _passkey
        for i in range(count):
            yield make(random.Random(f"{task} {split} {i}"), plays, encode)
        return
    texts = _plays(split) if task == "plays" else _maths(split)
    ids = encode("\n\n".join(texts))
    size = _PREFIX + _NEXT
    places = list(range(0, len(ids) - size + 1, size))
    if count > len(places):
        raise ValueError(f"{task}: the {split} texts are enough for {len(places)} cases, not for {count}")
    random.Random(f"{task} {split}").shuffle(places)
    for place in places[:count]:
        yield Case(task, ids[place : place + _PREFIX], [], ids[place + _PREFIX : place + size])


def _part(rows: Sequence[str], split: str) -> list[str]:
    cut = int(len(rows) * _DEV)
    return list(rows[:cut] if split == "dev" else rows[cut:])


def _plays(split: str) -> list[str]:
    return "\n".join(_part((DATA / "plays.txt").read_text(encoding="utf-8").split("\n"), split)).split("\n\n")


def _maths(split: str) -> list[str]:
    rows = map(json.loads, _part((DATA / "maths.jsonl").read_text(encoding="utf-8").splitlines(), split))
    return [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]


def _lookup(draw: random.Random, plays: list[str], encode: Encode) -> Case:
    names = draw.sample(_NAMES, 5)
    numbers = draw.sample(range(100, 1000), 5)
    facts = [f"The room number of {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    asked = draw.randrange(5)
    context = _filled(draw, plays, facts, _TOKENS["lookup"], encode)
    return Case("lookup", context, encode(f"\nThe room number of {names[asked]} is"), encode(f" {numbers[asked]}"))


def _passkey(draw: random.Random, plays: list[str], encode: Encode) -> Case:
    key = draw.randrange(10000, 100000)
    fact = f"The pass key is {key}. Remember it: {key} is the pass key."
    context = _filled(draw, plays, [fact], _TOKENS["passkey"], encode)
    return Case("passkey", context, encode("\nThe pass key is"), encode(f" {key}"))


def _filled(draw: random.Random, plays: list[str], facts: list[str], tokens: int, encode: Encode) -> list[int]:
    """Lines of a play with the facts between them, close to `tokens` long."""
    room = tokens - len(encode("\n".join(facts)))
    start = draw.randrange(len(plays) - room)
    lines: list[str] = []
    while room > 0:
        lines.append(plays[start + len(lines)])
        room -= len(encode(lines[-1] + "\n"))
    # Not among the last lines, which every policy keeps, nor among the first.
    places = sorted(draw.sample(range(1, len(lines) - 4), len(facts)), reverse=True)
    for place, fact in zip(places, facts, strict=True):
        lines.insert(place, fact)
    return encode("\n".join(lines))
