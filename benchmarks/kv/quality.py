"""What an answer loses when its cache is compressed: facts, and the next token's distribution."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from thriftree.benchmarks.kv.lab import Lab, Prefix
from thriftree.benchmarks.kv.policies import Cache, Policy, evicted, together
from thriftree.benchmarks.kv.tasks import RETRIEVAL, Case, Encode, cases
from thriftree.plugins.kv_cache.heads import HeadFile

#: Caches in one pass: bounds memory, about 90 MB a layer at 800 tokens.
_TOGETHER = 48

#: Of what only reads less, the answer's first tokens: then comes a step that reads everything and chooses anew.
_STRIDE = 9

FULL = Policy("full")


@dataclass(frozen=True)
class Figure:
    """One policy, one budget, one case. Retrieval has `exact`, the others have `kl` and `agree`."""

    policy: str
    keep: float
    task: str
    case: int
    nll: float  # nats: the whole answer's (retrieval), or per token
    exact: bool | None = None  # every token of the answer is the most likely one
    kl: float | None = None  # nats per token, from the full cache's distribution
    agree: float | None = None  # share of places where the most likely token is the full cache's


Cell = tuple[Policy, float]


def measure(lab: Lab, case: Case, number: int, cells: Sequence[Cell], file: HeadFile) -> Iterator[Figure]:
    """Every cell on one case; the full cache is among the answers."""
    context = lab.prefill(case.context)
    aware = [c for c in cells if c[0].aware and case.question]
    yield from _measure(lab, case, number, context, case.question, [c for c in cells if c not in aware], file)
    if aware:
        longer = lab.extend(context, case.question[:-1])
        yield from _measure(lab, case, number, longer, case.question[-1:], aware, file)


def _measure(
    lab: Lab, case: Case, number: int, prefix: Prefix, question: list[int], cells: Sequence[Cell], file: HeadFile
) -> Iterator[Figure]:
    cache = Cache(lab, prefix)
    ids, target = question + case.answer, torch.tensor(case.answer if question else case.answer[1:])
    everything: list[Cell] = [(FULL, 1.0)]
    full: Tensor | None = None
    for part in [everything, *(list(cells[i : i + _TOGETHER]) for i in range(0, len(cells), _TOGETHER))]:
        made = together([evicted(policy, cache, keep, file) for policy, keep in part])
        hidden = lab.read_on(prefix, ids[:-1], made)[:, -len(target) :]
        for (policy, keep), rows in zip(part, hidden, strict=True):
            found = lab.log_probabilities(rows)
            full = found if full is None else full
            if policy is not FULL or prefix.length == len(case.context):
                places = _STRIDE if policy.reads and not question else len(target)
                yield _figure(policy.name, keep, case.task, number, found[:places], full[:places], target[:places])


def _figure(name: str, keep: float, task: str, number: int, found: Tensor, full: Tensor, target: Tensor) -> Figure:
    nll = -found.gather(1, target[:, None])[:, 0]
    if task in RETRIEVAL:
        exact = bool((found.argmax(dim=1) == target).all())
        return Figure(name, keep, task, number, round(float(nll.sum()), 4), exact=exact)
    kl = float((full.exp() * (full - found)).sum(dim=1).mean())
    agree = float((found.argmax(dim=1) == full.argmax(dim=1)).float().mean())
    return Figure(name, keep, task, number, round(float(nll.mean()), 4), kl=round(kl, 5), agree=agree)


class Stopped(Exception):
    """The time is up; what has been measured is in the checkpoint."""


def run(
    lab: Lab,
    encode: Encode,
    split: str,
    counts: Mapping[str, int],
    cells: Sequence[Cell],
    file: HeadFile,
    checkpoint: Path | None,
    seconds: float,
    say: Callable[[str], None],
) -> list[Figure]:
    """All tasks. With a checkpoint, cases that are in it are not measured again.

    Raises:
        Stopped: after `seconds`, between two cases.
    """
    end, found = monotonic() + seconds, _read(checkpoint)
    wanted = {(policy.name, keep) for policy, keep in cells}
    for task, count in counts.items():
        for number, case in enumerate(cases(task, split, count, encode)):
            done = {(f.policy, f.keep) for f in found if (f.task, f.case) == (task, number)}
            open_cells = [
                c for c in cells if (c[0].name, c[1]) not in done and (case.question or not c[0].aware or c[0].reads)
            ]
            if not open_cells:
                continue
            if monotonic() > end:
                raise Stopped(f"{task} {number}")
            new = [f for f in measure(lab, case, number, open_cells, file) if (f.policy, f.keep) not in done]
            found += new
            _append(checkpoint, new)
            say(f"{task} {number + 1} of {count}: {len(new)} figures")
    return [f for f in found if f.case < counts.get(f.task, 0) and ((f.policy, f.keep) in wanted or f.policy == "full")]


def _read(checkpoint: Path | None) -> list[Figure]:
    if checkpoint is None or not checkpoint.exists():
        return []
    return [Figure(**json.loads(line)) for line in checkpoint.read_text(encoding="utf-8").splitlines()]


def _append(checkpoint: Path | None, figures: Sequence[Figure]) -> None:
    if checkpoint is not None:
        with checkpoint.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(vars(figure)) + "\n" for figure in figures)
