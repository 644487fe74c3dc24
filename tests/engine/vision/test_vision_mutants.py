"""Mistakes that would give wrong answers in silence are seen by the comparison with transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from thriftree.plugins.engine.vision import model, plan, processor, selection
from thriftree.zoo import tiny_vision

from .conftest import CHUNKED, LATER, mixed
from .pruned import expected, pruning
from .reference import Reference
from .scenarios import gap

pytestmark = [pytest.mark.engine, pytest.mark.slow]
Patch = pytest.MonkeyPatch


def no_settings_in_identities(patch: Patch) -> None:
    patch.setattr(processor, "_identity", lambda stock, spec, question: stock)


def no_question_in_identities(patch: Patch) -> None:
    stock = processor._identity
    patch.setattr(processor, "_identity", lambda name, spec, question: stock(name, spec, ()))


def no_positions(patch: Patch) -> None:
    strip = model.strip
    patch.setattr(model, "strip", lambda *given: (strip(*given)[0], None))


def text_follows_what_stays(patch: Patch) -> None:
    stock = model.pruned_positions
    patch.setattr(model, "pruned_positions", lambda *given: (stock(*given)[0], 0))


def first_rows_instead_of_picked(patch: Patch) -> None:
    stock = selection.Selector._agreed

    def _agreed(self: Any, of: plan.Plan, image: Any, chosen: Any) -> Any:
        right = stock(self, of, image, chosen)
        return type(right)(torch.arange(len(right.rows)), right.features)

    patch.setattr(selection.Selector, "_agreed", _agreed)


def merged_rows_are_forgotten(patch: Patch) -> None:
    stock = selection.Selector._agreed
    patch.setattr(selection.Selector, "_agreed", lambda self, *given: type(given[2])(stock(self, *given).rows))


def parts_of_a_batch_get_its_first_images(patch: Patch) -> None:
    stock = selection.Selector._sliced
    patch.setattr(selection.Selector, "_sliced", lambda self, inputs, start, end: stock(self, inputs, 0, end - start))


MUTANTS: list[Callable[[Patch], None]] = [
    no_settings_in_identities,
    no_question_in_identities,
    no_positions,
    text_follows_what_stays,
    first_rows_instead_of_picked,
    merged_rows_are_forgotten,
    parts_of_a_batch_get_its_first_images,
]


def worst(family: str, reference: Reference, patch: Patch, mutant: Callable[[Patch], None] | None) -> float:
    asks, later = (mixed(reference.processor.tokenizer, family, *more) for more in ((), (LATER,)))
    with pruning(str(tiny_vision.ensure(family)), max_num_batched_tokens=48, max_num_seqs=8) as (running, picks):
        if mutant is not None:
            mutant(patch)
        answers = [*running.run(asks), *running.run(later)]
    try:
        replies = [expected(reference, picks, one) for one in (*asks, *later)]
    except AssertionError:  # nobody picked rows for one of them
        return float("inf")
    return max(gap(answer, reply) for answer, reply in zip(answers, replies, strict=True))


@pytest.mark.parametrize("family", ["qwen3-vl"])
def test_mistakes_are_seen(family: str) -> None:
    reference = Reference(str(tiny_vision.ensure(family)))
    found = {}
    for mutant in (None, *MUTANTS):
        with Patch.context() as patch:
            try:
                found[mutant] = worst(family, reference, patch, mutant)
            except (RuntimeError, ValueError, AssertionError) as error:  # the engine itself stops at some
                found[mutant] = float("inf")
                print(mutant, error)
    right = found.pop(None)
    assert right <= CHUNKED
    missed = [mutant.__name__ for mutant, gap in found.items() if mutant is not None and gap <= 100 * CHUNKED]
    assert missed == []
