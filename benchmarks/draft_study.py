"""Tokens per step of every drafter on logged greedy answers, without an engine.

    python -m thriftree.benchmarks.draft_study LOGS.json [--methods auto suffix] [--nodes 4 8]

The log is a list of answers: ``cat`` (category), ``prompt`` and ``ids`` (token ids), ``ptop`` and ``top``
(the model's top-8 at every prompt and output position; ``ptop[i]`` is what was predicted for position ``i``,
the first is empty). Every answer counts its prefill as one step. Rejected nodes' rows are not in the log, so
rows learn from the emitted path only and an engine does a little better. Calibration is cross-validated:
cells fitted on the even answers are tested on the odd ones and the other way round. ``--fit`` prints cells
fitted on all answers (the shipped ones).
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.speculative import registry
from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.calibration import (
    CELLS,
    ROW_CLASSES,
    Calibration,
    table,
)
from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.walk import verified_chain

Answer = dict[str, Any]
Floats = NDArray[np.float64]
MAX_DEPTH = 10
#: Cells seen less often than this are left to the additive fit.
ENOUGH = 30


def _every_eighth(prompt: Sequence[int]) -> Iterable[int]:
    return range(len(prompt) - 2, -1, -8)


def _last_eighth(prompt: Sequence[int]) -> Iterable[int]:
    return range(len(prompt) - 1 - len(prompt) // 8, len(prompt) - 1)


def _rare_eighth(prompt: Sequence[int]) -> Iterable[int]:
    counts: dict[int, int] = defaultdict(int)
    for token in prompt:
        counts[token] += 1
    last = {token: i for i, token in enumerate(prompt[:-1])}
    return sorted(sorted(last.values(), key=lambda i: (counts[prompt[i]], -i))[: len(prompt) // 8])


#: Which prompt rows are paid for (the last row is always there).
SEEDS: dict[str, Callable[[Sequence[int]], Iterable[int]]] = {
    "all": lambda prompt: range(len(prompt) - 1),
    "last32": lambda prompt: range(max(len(prompt) - 33, 0), len(prompt) - 1),
    "every8th": _every_eighth,
    "last8th": _last_eighth,
    "rare8th": _rare_eighth,
    "none": lambda prompt: (),
}


@dataclass
class Tally:
    """What one run over a set of answers gave."""

    tokens: int = 0
    steps: int = 0
    proposals: int = 0
    seconds: float = 0.0
    promised: float = 0.0
    accepted: int = 0
    drafted: int = 0
    by_category: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps

    def add(self, other: Tally) -> None:
        for name in ("tokens", "steps", "proposals", "seconds", "promised", "accepted", "drafted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for category, (tokens, steps) in other.by_category.items():
            self.by_category[category][0] += tokens
            self.by_category[category][1] += steps


def replay(answers: Sequence[Answer], make: Callable[[], Drafter], nodes: int, seed: str, warm: bool) -> Tally:
    """Run the drafter over the answers as an engine would; cold: a new drafter for each."""
    tally = Tally()
    drafter = make()
    for number, answer in enumerate(answers):
        if not warm:
            drafter = make()
        steps = _replay_one(answer, drafter, str(number), nodes, seed, tally)
        size = len(answer["ids"])
        tally.tokens += size
        tally.steps += steps
        entry = tally.by_category[answer["cat"].split(":")[-1]]
        entry[0] += size
        entry[1] += steps
    return tally


def _replay_one(answer: Answer, drafter: Drafter, request: str, nodes: int, seed: str, tally: Tally) -> int:
    prompt, ids = answer["prompt"], answer["ids"]
    text = prompt + ids

    def observe(first_predicted: Iterable[int]) -> None:
        positions = [p for p in first_predicted if p > 0]
        rows = [answer["ptop"][p] if p < len(prompt) else answer["top"][p - len(prompt)] for p in positions]
        pairs = [(text[p - 2] if p > 1 else -1, text[p - 1]) for p in positions]
        drafter.observe(request, pairs, np.array(rows, dtype=np.int32))

    drafter.start(request, "study", prompt)
    observe([i + 1 for i in SEEDS[seed](prompt)] + [len(prompt)])
    drafter.emit(request, ids[:1])
    done, steps = 1, 1
    while done < len(ids):
        began = time.perf_counter()
        tree = drafter.propose(request, nodes, MAX_DEPTH)
        tally.seconds += time.perf_counter() - began
        path = verified_chain(tree, ids[done:])
        tally.proposals += 1
        tally.promised += sum(tree.values)
        tally.accepted += len(path)
        tally.drafted += len(tree)
        advance = min(len(path) + 1, len(ids) - done)
        observe(range(len(prompt) + done, len(prompt) + done + advance))
        drafter.emit(request, ids[done : done + advance])
        done += advance
        steps += 1
    drafter.finish(request)
    return steps


class CountingCalibration(Calibration):
    """Counts what it learns, for a fit."""

    __slots__ = ("hits", "trials")

    def __init__(self, prior: Sequence[float]) -> None:
        super().__init__(prior=prior)
        self.hits = np.zeros(CELLS)
        self.trials = np.zeros(CELLS)

    def learn(self, cell: int, hit: bool) -> None:
        super().learn(cell, hit)
        self.hits[cell] += hit
        self.trials[cell] += 1


def fit(answers: Sequence[Answer], nodes: int = 24) -> tuple[list[float], list[float], dict[int, float]]:
    """Log-odds per suffix class and per row class, and the probability of cells that were seen often
    enough."""
    hits, trials = np.zeros(CELLS), np.zeros(CELLS)
    prior = _table(*_guess())  # not the shipped cells: these know the answers that a fold must not
    for warm in (False, True):
        counted: list[CountingCalibration] = []

        def count(into: list[CountingCalibration] = counted) -> Calibration:
            into.append(CountingCalibration(prior))
            return into[-1]

        def make(count: Callable[[], Calibration] = count) -> Drafter:
            return registry.build("auto", Memory(calibration=count))

        replay(answers, make, nodes, "all", warm)
        hits += sum((c.hits for c in counted), np.zeros(CELLS))
        trials += sum((c.trials for c in counted), np.zeros(CELLS))
    suffixes, rows = _additive_fit(hits.reshape(-1, ROW_CLASSES), trials.reshape(-1, ROW_CLASSES))
    smooth: Floats = np.array(_table(suffixes, rows))
    joint = (hits + 20 * smooth) / (trials + 20)
    often = {int(c): round(float(joint[c]), 3) for c in np.flatnonzero(trials >= ENOUGH)}
    return [round(float(x), 2) for x in suffixes], [round(float(x), 2) for x in rows], often


def _table(suffixes: Floats, rows: Floats) -> tuple[float, ...]:
    return table(suffixes.tolist(), rows.tolist(), {})


def _additive_fit(hits: Floats, trials: Floats, rounds: int = 100) -> tuple[Floats, Floats]:
    """Logistic regression on two factors by alternating Newton steps, pulled towards a plain guess."""
    suffix_guess, row_guess = _guess()
    suffixes, rows = suffix_guess.copy(), row_guess.copy()
    for _ in range(rounds):
        for axis, weights, guess in ((1, suffixes, suffix_guess), (0, rows, row_guess)):
            p = 1 / (1 + np.exp(-(suffixes[:, None] + rows[None])))
            slope = (hits - trials * p).sum(axis) - (weights - guess)
            curvature = (trials * p * (1 - p)).sum(axis) + 1
            weights += np.clip(slope / curvature, -1, 1)
    return suffixes, rows


def _guess() -> tuple[Floats, Floats]:
    """Longer matches and lower ranks are better; a shared continuation is worse than the only one."""
    share = [-1.5] * 3 + [-2.5] * 6
    own = [s + 0.6 * length for length in range(7) for s in share]
    ranks = [1.5, -0.2, -0.8, -1.2, -1.5, -1.6, -1.8, -2.0]
    return np.array([-2.5, -2.5, *own, *own]), np.array([0.0, -0.7, *ranks, *ranks])


def cross_validated(
    answers: Sequence[Answer],
    method: str,
    nodes: int,
    seed: str,
    warm: bool,
    folds: Sequence[Sequence[float]],
) -> Tally:
    total = Tally()
    for answers_of_fold, prior in ((answers[1::2], folds[0]), (answers[::2], folds[1])):

        def calibration(prior: Sequence[float] = prior) -> Calibration:
            return Calibration(prior=prior)

        def make(calibration: Callable[[], Calibration] = calibration) -> Drafter:
            return registry.build(method, Memory(calibration=calibration))

        total.add(replay(answers_of_fold, make, nodes, seed, warm))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(registry.names()), choices=registry.names())
    parser.add_argument("--nodes", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--seeds", nargs="+", default=["all", "none"], choices=list(SEEDS))
    parser.add_argument("--categories", action="store_true", help="tokens per step by category, warm")
    parser.add_argument("--fit", action="store_true", help="print cells fitted on all answers and stop")
    options = parser.parse_args()
    answers: list[Answer] = json.loads(options.logs.read_text())
    if options.fit:
        suffixes, rows, joint = fit(answers)
        for name, value in (("SUFFIXES", suffixes), ("ROWS", rows), ("JOINT: dict[int, float]", joint)):
            print("\n    ".join(textwrap.wrap(f"{name} = {value}", 104, break_on_hyphens=False)))
        return
    folds = [table(*fit(answers[::2])), table(*fit(answers[1::2]))]
    tokens = sum(len(a["ids"]) for a in answers)
    print(f"{len(answers)} answers, {tokens} tokens; tokens per step, cells cross-validated by answer")
    print("method           prompt rows  nodes   cold   warm  drafted  realised/promised  ms a draft")
    for method in options.methods:
        for seed in options.seeds:
            for nodes in options.nodes:
                cold = cross_validated(answers, method, nodes, seed, False, folds)
                warm = cross_validated(answers, method, nodes, seed, True, folds)
                print(
                    f"{method:16} {seed:11} {nodes:6} {cold.tokens_per_step:6.3f} "
                    f"{warm.tokens_per_step:6.3f} "
                    f"{warm.drafted / warm.proposals:8.1f} {warm.accepted / max(warm.promised, 1e-9):18.2f} "
                    f"{1e3 * warm.seconds / warm.proposals:11.3f}"
                )
                if options.categories:
                    figures = sorted((t / s, c) for c, (t, s) in warm.by_category.items())
                    print("    " + "  ".join(f"{c} {x:.2f}" for x, c in reversed(figures)))


if __name__ == "__main__":
    main()
