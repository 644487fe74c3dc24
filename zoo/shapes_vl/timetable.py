"""Which pictures and questions each step learns from: the same for a step, however often the training was cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator, default_rng

from thriftree.zoo.shapes_vl.lessons import Batch, Writer
from thriftree.zoo.shapes_vl.pool import Pool

if TYPE_CHECKING:
    from thriftree.zoo.shapes_vl.train import Recipe


@dataclass(frozen=True)
class Timetable:
    """Indexed by the step."""

    recipe: Recipe
    pool: Pool
    writer: Writer

    def __getitem__(self, step: int) -> tuple[np.ndarray, Batch | None]:
        """Rows of the pool [B]; with questions once the tower has learnt to see."""
        rng = default_rng((self.recipe.seed, step))
        if step < self.recipe.see_steps:
            return rng.integers(self.recipe.scenes, size=self.recipe.see_batch), None
        rows = rng.integers(self.recipe.scenes, size=self.recipe.answer_batch)
        scenes = [self.pool.scenes[row] for row in rows]
        return rows, self.writer.batch(scenes, self.pool.shown[rows], self.recipe.each, rng, _share(rng))

    def from_step(self, first: int, beside: bool) -> Iterator[tuple[Any, Batch | None]]:
        """The steps from `first` on; written by other processes ahead of time when `beside` (a GPU does not wait)."""
        from torch.utils.data import DataLoader

        workers = max(1, (os.cpu_count() or 2) - 1)
        ahead: dict[str, Any] = {"num_workers": workers, "prefetch_factor": 4} if beside else {}
        steps = range(first, self.recipe.see_steps + self.recipe.answer_steps)
        table: Any = self
        yield from DataLoader(table, batch_size=None, sampler=steps, collate_fn=_as_it_is, **ahead)


def _share(rng: Generator) -> float:
    """A quarter of the batches keep all of the ground, the others little of it more often than much."""
    return 1.0 if rng.random() < 0.25 else float(rng.random() ** 2)


def _as_it_is(one: Any) -> Any:
    return one
