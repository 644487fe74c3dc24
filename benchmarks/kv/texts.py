"""Prompts of chosen lengths from the play text, every one another place of it."""

from __future__ import annotations

from collections.abc import Sequence

from thriftree.benchmarks.kv.tasks import DATA


def prompts(model: str, lengths: Sequence[int], first: int = 0) -> list[tuple[int, ...]]:
    """Token ids, one prompt after the other through the text from token `first` on, round again at its end."""
    from transformers import AutoTokenizer

    text = (DATA / "plays.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)["input_ids"]
    made, at = [], first
    for length in lengths:
        made.append(tuple(ids[(at + i) % len(ids)] for i in range(length)))
        at += length
    return made
