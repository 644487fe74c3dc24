"""The tables, for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from thriftree.benchmarks.summary import ALL, Row

COLUMNS = (
    "method", "tokens/step", "decode", "wall vs off", "spread", "decode vs off", "vs ngram", "CPU ms/step",
    "CPU vs off", "differ",
)  # fmt: skip
NOTES = (
    "wall vs off: seconds per token of plain vLLM over this method's, median over prompts, same prompts in turns. "
    "Spread: 10-90 percentile over prompts in a category, 95 % bootstrap interval over all. tokens/step counts the "
    "prefill as a step, decode does not. CPU: all processes of the engine, with prefill and polling. "
    "differ: answers that are not token by token those of plain vLLM. off_again: plain vLLM a second time, what noise "
    "makes of 1.00; tree_off: our engine with speculation off in the request."
)


def cells(row: Row) -> list[str]:
    return [
        row.method,
        _number(row.per_step),
        _number(row.per_decode_step),
        _number(row.wall, "x"),
        "-" if math.isnan(row.wall_low) else f"{row.wall_low:.2f}-{row.wall_high:.2f}",
        _number(row.decode, "x"),
        _number(row.to_ngram, "x"),
        f"{row.cpu_per_step * 1e3:.0f}",
        _number(row.cpu, "x"),
        f"{row.mismatches}/{row.requests}",
    ]


def _number(value: float, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:.2f}{unit}"


def sections(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of every table: the summary of each pass, then its categories."""

    def title(row: Row) -> str:
        return f"{row.dtype}, batch {row.batch}, {row.phase}: {row.category}"

    overall = [row for row in rows if row.category == ALL]
    rest = sorted((row for row in rows if row.category != ALL), key=lambda r: (r.dtype, r.phase, r.batch, r.category))
    for part in (overall, rest):
        for name, members in groupby(part, key=title):
            yield name, list(members)


def show(console: Console, rows: Sequence[Row], absent: Mapping[str, str]) -> None:
    for title, members in sections(rows):
        table = Table(title=title, padding=(0, 1), title_justify="left", title_style="bold")
        for i, column in enumerate(COLUMNS):
            table.add_column(column.replace(" ", "\n", 1), justify="right" if i else "left")
        for row in members:
            table.add_row(*cells(row))
        for name, why in absent.items():
            table.add_row(name, why.split(" (")[0], *[""] * (len(COLUMNS) - 2), style="dim")
        console.print(table)
    console.print(NOTES, style="dim")


def markdown(rows: Sequence[Row], absent: Mapping[str, str], result: Mapping[str, Any]) -> str:
    lines = ["# Speculation: measured", "", *(f"- {line}" for line in result["lines"]), ""]
    for title, members in sections(rows):
        lines += [f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in members]
        lines += [f"| {name} | {why} |" + " |" * (len(COLUMNS) - 2) for name, why in absent.items()]
        lines.append("")
    return "\n".join([*lines, NOTES, ""])
