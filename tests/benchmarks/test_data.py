"""The prompts that we ship: small, licensed, cut into disjoint passes."""

from __future__ import annotations

import pytest

from thriftree.benchmarks import prompts
from thriftree.benchmarks.prompts import Prompt


def test_every_file_has_its_licence() -> None:
    readme = (prompts.DATA / "README.md").read_text()
    files = sorted(prompts.DATA.glob("*.jsonl"))
    assert len(files) == 3
    for file in files:
        row = next(line for line in readme.splitlines() if f"`{file.name}`" in line)
        assert row.rstrip("| ").endswith(("Apache-2.0", "MIT")) and "https://" in row


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in prompts.DATA.iterdir()) < 300_000


def test_all_categories_are_there() -> None:
    found = prompts.load()
    assert len(found) == 15 and {"gsm8k", "humaneval", "rag", "translation"} <= set(found)
    assert all(5 <= len(members) <= 12 for members in found.values())
    texts = [p.text for members in found.values() for p in members]
    assert len(set(texts)) == len(texts) and all(len(text) < 4_500 for text in texts)


@pytest.mark.parametrize(("each", "count"), [(1, 1), (3, 2), (100, 2)])
def test_passes_are_disjoint(each: int, count: int) -> None:
    chosen = [p for members in prompts.load().values() for p in members]
    made = prompts.passes(chosen, each, count, seed=1)
    texts = [p.text for part in made for p in part]
    assert len(made) == count and len(set(texts)) == len(texts)
    assert {p.category for p in made[0]} == {p.category for p in made[-1]} == set(prompts.load())
    assert made == prompts.passes(chosen, each, count, seed=1)


def test_groups_fill_the_batch() -> None:
    few = [Prompt("a", str(i)) for i in range(5)]
    assert [len(group) for group in prompts.groups(few, 4, 2, 3, seed=0)] == [8, 8, 8]
    assert len({p.text for p in prompts.groups(few, 2, 2, 1, seed=0)[0]}) == 4
    assert prompts.groups([], 4, 2, 3, seed=0) == []
