"""From figures to tables: one row per policy, budgets side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from thriftree.benchmarks.vision.quality import FULL, Figure

NOTES = (
    "Right answers in %, mean over the draws of questions, and its standard error; greedy, the whole answer must be "
    "right. Budgets are shares of an image's tokens; all policies send the same number of them."
)


def rows(figures: Sequence[Figure]) -> dict[str, dict[float, tuple[float, float]]]:
    """policy -> budget -> accuracy and its standard error, in %."""
    grouped: dict[tuple[str, float], list[float]] = defaultdict(list)
    for figure in figures:
        grouped[figure.policy, figure.keep].append(100 * figure.accuracy)
    found: dict[str, dict[float, tuple[float, float]]] = defaultdict(dict)
    for (policy, keep), shares in grouped.items():
        found[policy][keep] = fmean(shares), (stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0.0)
    return dict(found)


def cells(figures: Sequence[Figure]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table."""
    made = rows(figures)
    keeps = sorted({figure.keep for figure in figures if figure.policy != FULL}, reverse=True)
    whole = made[FULL][1.0]
    lines = [[FULL, *[""] * len(keeps), f"{whole[0]:.1f} ± {whole[1]:.1f}"]]
    for policy, by_keep in made.items():
        if policy != FULL:
            lines.append(
                [policy, *(f"{by_keep[k][0]:.1f} ± {by_keep[k][1]:.1f}" if k in by_keep else "-" for k in keeps)]
            )
    heads = ["policy", *(f"{100 * keep:g} %" for keep in keeps), "100 %"]
    return heads, [line + [""] * (len(heads) - len(line)) for line in lines]


def kinds(figures: Sequence[Figure], keep: float) -> tuple[list[str], list[list[str]]]:
    """The same at one budget, by kind of question."""
    names = list(figures[0].asked)
    grouped: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.keep == keep or figure.policy == FULL:
            grouped[figure.policy].append(figure)
    lines = []
    for policy, those in grouped.items():
        shares = [100 * sum(f.right.get(n, 0) for f in those) / sum(f.asked[n] for f in those) for n in names]
        lines.append([policy, *(f"{share:.0f}" for share in shares)])
    return [f"at {100 * keep:g} %", *names], lines


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """The smallest budget at which some policy keeps 99 %, 98 % and 95 % of the unpruned accuracy."""
    made = rows(figures)
    whole, said = made[FULL][1.0][0], []
    for share in (0.99, 0.98, 0.95):
        good = [
            (keep, -mean, policy)
            for policy, by_keep in made.items()
            if policy != FULL
            for keep, (mean, _) in by_keep.items()
            if mean >= share * whole
        ]
        if good:
            keep, mean, policy = min(good)
            said.append(f"{100 * share:g} % of the unpruned accuracy: {policy} at {100 * keep:g} % ({-mean:.1f} %)")
        else:
            said.append(f"{100 * share:g} % of the unpruned accuracy: none")
    return said


def show(console: Console, title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, padding=(0, 1), title_justify="left", title_style="bold")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    bar = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, bar, *lines)) + "\n"
