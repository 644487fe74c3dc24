"""From figures to tables: one row per policy, budgets side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from thriftree.benchmarks.kv.quality import Figure
from thriftree.benchmarks.kv.tasks import RETRIEVAL, TASKS

COLUMNS = ("policy", "lookup %", "nll", "passkey %", "nll", "KL plays", "KL maths", "facts kept %", "same token %")
NOTES = (
    "lookup, passkey: answers of which every token is the most likely one, by teacher forcing; nll: nats of the whole "
    "answer. KL: nats per token, from the full cache's distribution of the next token to the compressed one's. facts "
    "kept: of the lookups and passkeys that the full cache answers, those still answered. same token: places in plays "
    "and maths where the most likely next token is the full cache's. Rows are equal for every policy, counted over "
    "layers and KV heads; 4 sinks and the 32 newest rows always stay; the cache is compressed once, at the context's "
    "end, before the question is read ('question seen': after it). Blocks and side memory are not counted here. "
    "recycled_attention and actqkv_like free nothing: their share is what a step reads, in blocks of 16, and their KL "
    "is that of the first 9 tokens after the choice."
)


@dataclass(frozen=True)
class Cell:
    """One policy at one budget; None: not measured."""

    policy: str
    keep: float
    exact: dict[str, float]  # task -> share
    nll: dict[str, float]
    kl: dict[str, float]
    cases: dict[str, int]
    facts_kept: float | None
    same_token: float | None

    @property
    def both(self) -> float | None:
        """The worse of the two kinds of figure."""
        return None if self.facts_kept is None or self.same_token is None else min(self.facts_kept, self.same_token)


def cells(figures: Iterable[Figure]) -> list[Cell]:
    """In the order of the figures."""
    by: dict[tuple[str, float], list[Figure]] = defaultdict(list)
    for figure in figures:
        by[figure.policy, figure.keep].append(figure)
    answered = {(f.task, f.case) for f in by.get(("full", 1.0), ()) if f.exact}
    return [_cell(policy, keep, found, answered) for (policy, keep), found in by.items()]


def _cell(policy: str, keep: float, found: Sequence[Figure], answered: set[tuple[str, int]]) -> Cell:
    tasks = {task: [f for f in found if f.task == task] for task in TASKS}
    tasks = {task: members for task, members in tasks.items() if members}
    facts = [bool(f.exact) for f in found if (f.task, f.case) in answered]
    agree = [f.agree for f in found if f.agree is not None]
    return Cell(
        policy,
        keep,
        exact={task: fmean(bool(f.exact) for f in m) for task, m in tasks.items() if task in RETRIEVAL},
        nll={task: fmean(f.nll for f in m) for task, m in tasks.items()},
        kl={task: fmean(f.kl or 0.0 for f in m) for task, m in tasks.items() if task not in RETRIEVAL},
        cases={task: len(m) for task, m in tasks.items()},
        facts_kept=fmean(facts) if facts else None,
        same_token=fmean(agree) if agree else None,
    )


def lines(made: Sequence[Cell], order: Sequence[str]) -> Iterator[list[str]]:
    """The table's rows, `order` naming the policies."""
    by: dict[str, dict[float, Cell]] = defaultdict(dict)
    for cell in made:
        by[cell.policy][cell.keep] = cell
    for policy in ("full", *order):
        if policy in by:
            budgets = [by[policy][keep] for keep in sorted(by[policy], reverse=True)]
            yield [policy, *_columns(budgets)]


def _columns(budgets: Sequence[Cell]) -> Iterator[str]:
    def shown(read: Callable[[Cell], float | None], form: str, factor: float = 1.0) -> str:
        values = [read(cell) for cell in budgets]
        return " / ".join("-" if v is None else format(v * factor, form) for v in values)

    for task in RETRIEVAL:
        yield shown(lambda cell, task=task: cell.exact.get(task), ".0f", 100)  # type: ignore[misc]
        yield shown(lambda cell, task=task: cell.nll.get(task), ".1f")  # type: ignore[misc]
    for task in ("plays", "maths"):
        yield shown(lambda cell, task=task: cell.kl.get(task), ".3f")  # type: ignore[misc]
    yield shown(lambda cell: cell.facts_kept, ".0f", 100)
    yield shown(lambda cell: cell.same_token, ".1f", 100)


def verdicts(made: Sequence[Cell]) -> list[str]:
    """Which settings keep enough on both kinds of figure, the smallest budget first."""
    said = []
    for bar in (0.99, 0.95):
        good = sorted((c.keep, c.policy) for c in made if c.policy != "full" and (c.both or 0.0) >= bar)
        text = ", ".join(f"{policy} at {keep * 100:g} %" for keep, policy in good) or "no setting"
        said.append(f"at least {bar * 100:.0f} % of the full cache's facts and of its next tokens: {text}")
    return said


def budgets(made: Sequence[Cell]) -> str:
    return " / ".join(
        f"{keep * 100:g} %" for keep in sorted({c.keep for c in made if c.policy != "full"}, reverse=True)
    )


def show(console: Console, made: Sequence[Cell], order: Sequence[str]) -> None:
    title = f"quality at {budgets(made)} of the prompt's rows"
    table = Table(title=title, padding=(0, 1), title_justify="left", title_style="bold")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i else "left")
    for line in lines(made, order):
        table.add_row(*line)
    console.print(table)
    console.print(NOTES, style="dim")


def markdown(made: Sequence[Cell], order: Sequence[str], said: Sequence[str]) -> str:
    head = ["# KV-cache compression: quality, measured", "", *(f"- {line}" for line in said), ""]
    head += [f"## {budgets(made)} of the prompt's rows", "", "| " + " | ".join(COLUMNS) + " |"]
    head += ["|---|" + "---:|" * (len(COLUMNS) - 1)]
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in lines(made, order)), "", NOTES, ""])


def data(made: Sequence[Cell]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{**asdict(cell), "both": cell.both} for cell in made]
