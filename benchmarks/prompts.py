"""The benchmark's prompts (`data/README.md` has sources and licences), cut into passes and batches."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Prompt:
    category: str
    text: str
    ids: tuple[int, ...] = ()


def load(folder: Path = DATA) -> dict[str, list[Prompt]]:
    """All prompts by category, in the files' order."""
    found: dict[str, list[Prompt]] = defaultdict(list)
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[row["category"]].append(Prompt(row["category"], row["prompt"]))
    return dict(found)


def context(model: str, most: int) -> int:
    """Tokens that the model can see, `most` at most."""
    from transformers import AutoConfig

    return min(most, int(getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", most)))


def encode(prompts: Iterable[Prompt], model: str, longest: int) -> list[Prompt]:
    """With token ids: the model's chat template around each; longer ones are left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def ids(text: str) -> tuple[int, ...]:
        if tokenizer.chat_template is None:
            return tuple(tokenizer(text)["input_ids"])
        turn = [{"role": "user", "content": text}]
        made = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return tuple(tokenizer(made, add_special_tokens=False)["input_ids"])

    return [p for p in encoded(prompts, ids) if len(p.ids) <= longest]


def encoded(prompts: Iterable[Prompt], ids: Callable[[str], tuple[int, ...]]) -> list[Prompt]:
    return [Prompt(p.category, p.text, ids(p.text)) for p in prompts]


def passes(prompts: Sequence[Prompt], each: int, count: int, seed: int) -> list[list[Prompt]]:
    """`count` disjoint lists with `each` prompts of every category (fewer where there are not as many), shuffled."""
    by: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by[prompt.category].append(prompt)
    made: list[list[Prompt]] = [[] for _ in range(count)]
    for members in by.values():
        for i, part in enumerate(made):
            part += members[i::count][:each]
    for i, part in enumerate(made):
        random.Random(seed + i).shuffle(part)
    return made


def groups(prompts: Sequence[Prompt], batch: int, waves: int, most: int, seed: int) -> list[list[Prompt]]:
    """For `batch` requests in flight: up to `most` groups of `waves * batch` prompts of mixed categories.

    Prompts are drawn again when they run out, never twice in one group unless the group needs more than there are.
    """
    order = list(prompts)
    random.Random(seed * 1000 + batch).shuffle(order)
    size = batch * waves
    return [[order[(g * size + i) % len(order)] for i in range(size)] for g in range(most)] if order else []
