"""Mistakes that would give wrong answers in silence are seen by the comparison with transformers' layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from thriftree.plugins.engine.vision.late import fate, layers, runner, step
from thriftree.plugins.vision.late_rows import Gone
from thriftree.zoo import tiny_vision

from ..conftest import CHUNKED
from ..reference import Reference
from ..scenarios import gap
from .conftest import MIXED, ROOM, asks_of, late_engine, replies
from .oracle import Oracle

pytestmark = [pytest.mark.engine, pytest.mark.slow]
Patch = pytest.MonkeyPatch


def no_row_leaves(patch: Patch) -> None:
    patch.setattr(runner, "plan", lambda parts: None)


def rows_leave_in_prefill_only(patch: Patch) -> None:
    stock = step.plan
    patch.setattr(runner, "plan", lambda parts: None if all(one.scheduled == 1 for one in parts) else stock(parts))


def slots_of_the_early_layers(patch: Patch) -> None:
    """Keys go where they would go if no row had left: holes are read."""
    stock = step.LateRows.slots

    def slots(self: Any, table: Any, block: int) -> Any:
        return stock(replace(self, lengths=self.lengths + 64), table, block)

    patch.setattr(step.LateRows, "slots", slots)


def one_key_too_many(patch: Patch) -> None:
    _changed(patch, lambda rows: replace(rows, lengths=rows.lengths + 1))


def one_key_too_few(patch: Patch) -> None:
    _changed(patch, lambda rows: replace(rows, lengths=np.maximum(rows.lengths - 1, rows.counts)))


def _changed(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Lengths as attention sees them; slots stay right."""
    stock = runner.LateRunnerMixin._laid_out

    def _laid_out(self: Any, rows: Any) -> Any:
        made, right = stock(self, change(rows)), stock(self, rows)
        return layers.LateStep(rows, made.metadata, right.slots)

    patch.setattr(runner.LateRunnerMixin, "_laid_out", _laid_out)


def rows_close_up(patch: Patch) -> None:
    """Rows that stay get the positions of the first ones."""
    stock = layers.LateLayers._go_on

    def _go_on(self: Any, module: Any, args: Any) -> Any:
        if self._step is None:
            return stock(self, module, args)
        return (args[0][..., : self._step.positions.shape[-1]], *args[1:])

    patch.setattr(layers.LateLayers, "_go_on", _go_on)


def answers_read_the_wrong_row(patch: Patch) -> None:
    stock = layers.LateLayers._leave

    def _leave(self: Any, module: Any, args: Any, output: Any) -> Any:
        if self._step is None:
            return None
        whole, residual = stock(self, module, args, output)
        whole[-1] = whole[self._step.at[0]]
        return whole, residual

    patch.setattr(layers.LateLayers, "_leave", _leave)


def the_least_looked_at_stay(patch: Patch) -> None:
    stock = fate.Fate.choose
    patch.setattr(fate.Fate, "choose", lambda self, scores=None: stock(self, None if scores is None else -scores))


def what_left_is_forgotten(patch: Patch) -> None:
    """Later steps count on rows that are not there."""
    patch.setattr(Gone, "length", lambda self, tokens: tokens)


MUTANTS: list[Callable[[Patch], None]] = [
    no_row_leaves,
    rows_leave_in_prefill_only,
    slots_of_the_early_layers,
    one_key_too_many,
    one_key_too_few,
    answers_read_the_wrong_row,
    the_least_looked_at_stay,
    what_left_is_forgotten,
    rows_close_up,
]


def worst(oracle: Oracle, asks: Any, mutant: Callable[[Patch], None] | None) -> float:
    oracle.told.clear()
    with Patch.context() as patch:
        if mutant is not None:
            mutant(patch)
        with late_engine(str(tiny_vision.ensure("llava")), oracle, **ROOM) as (running, picks):
            answers = running.run(asks)
    try:
        expected = replies(oracle, picks, asks)
    except AssertionError:  # rows went on that have not the highest scores
        return float("inf")
    return max(gap(answer, reply) for answer, reply in zip(answers, expected, strict=True))


def test_mistakes_are_seen() -> None:
    oracle = Oracle(Reference(str(tiny_vision.ensure("llava"))), 1)
    asks = asks_of(oracle.reference.processor.tokenizer, "llava", MIXED)
    found = {}
    for mutant in (None, *MUTANTS):
        try:
            found[mutant] = worst(oracle, asks, mutant)
        except (RuntimeError, ValueError, IndexError) as error:  # the engine itself stops at some
            found[mutant] = float("inf")
            print(mutant, error)
    right = found.pop(None)
    assert right <= CHUNKED
    missed = [mutant.__name__ for mutant, gap in found.items() if mutant is not None and gap <= 100 * CHUNKED]
    assert missed == [], found
