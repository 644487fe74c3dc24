"""From what was measured to tables, targets, and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from thriftree.benchmarks.gateway.latency import Cpu, Row
from thriftree.benchmarks.gateway.memory import Memory
from thriftree.benchmarks.gateway.overload import SERVICE, Fairness, Overload, Vanished
from thriftree.benchmarks.stats import percentile

OURS = ("gateway", "keys+quota+log")
NOTES = (
    "bare: the engine's app alone; gateway: all layers; keys+quota+log: with a keys file, quotas on requests, tokens "
    "and concurrency, an access log; same, tokenizer: prompts counted with the model's tokenizer, as in front of an "
    "engine in the same process; remote: `--engine` in front of the bare one; LiteLLM: its proxy there, one worker, no "
    "keys, no database. Added: percentile less that of bare, same turns; paired: p99 of differences request by "
    "request. With 32 in flight the engine holds every answer for 200 ms. CPU: all processes that a request passes, "
    "less bare."
)


@dataclass
class Found:
    """Everything that a run has measured."""

    rows: list[Row] = field(default_factory=list)
    cpu: list[Cpu] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    overload: Overload | None = None
    fairness: Fairness | None = None
    vanished: Vanished | None = None
    absent: dict[str, str] = field(default_factory=dict)  # contender -> why it is not there
    real: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(found: Found) -> list[Table]:
    made = [*_latency(found.rows), *_cpu(found.cpu), *_memory(found.memory)]
    if found.overload is not None and found.fairness is not None and found.vanished is not None:
        made += [_overload(found.overload), _fairness(found.fairness), _vanished(found.vanished)]
    if found.real:
        columns = list(found.real[0])
        made.append(
            Table("real vLLM behind, one after the other", columns, [list(map(str, r.values())) for r in found.real])
        )
    made.append(Table("targets", ("claim", "measured", "target", ""), targets(found)))
    return made


def _latency(rows: Sequence[Row]) -> Iterator[Table]:
    columns = ("contender", "p50 ms", "p99 ms", "added p50", "added p99", "paired p99", "requests")
    for cell, members in groupby(rows, key=lambda row: row.cell):
        yield Table(cell.title, columns, [_latency_cells(row) for row in members])


def _latency_cells(row: Row) -> list[str]:
    paired = "-" if row.paired_p99 is None else f"{row.paired_p99 * 1e3:+.2f}"
    times = [f"{row.p50 * 1e3:.2f}", f"{row.p99 * 1e3:.2f}"]
    if row.name == "bare":
        return [row.name, *times, "-", "-", "-", str(row.count)]
    return [row.name, *times, f"{row.added_p50 * 1e3:+.2f}", f"{row.added_p99 * 1e3:+.2f}", paired, str(row.count)]


def _cpu(rows: Sequence[Cpu]) -> Iterator[Table]:
    columns = ("contender", "us per request", "added", "us per chunk", "added")
    if rows:
        cells = [
            [one.name, *(f"{x * 1e6:.1f}" for x in (one.request, one.added_request, one.chunk, one.added_chunk))]
            for one in rows
        ]
        yield Table("CPU", columns, cells)


def _memory(rows: Sequence[Memory]) -> Iterator[Table]:
    columns = ("contender", "requests", "MB before", "MB after", "growth MB", "streams open", "kB per stream")
    if rows:
        cells = [
            [m.name, str(m.requests), _mb(m.begin), _mb(m.end), _mb(m.end - m.begin), str(m.streams),
             f"{m.per_stream / 1e3:.1f}"] for m in rows
        ]  # fmt: skip
        yield Table("memory", columns, cells)


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _overload(o: Overload) -> Table:
    columns = ("capacity/s", "goodput/s", "ratio", "answered", "429", "without Retry-After", "5xx", "other",
               "429 p50 ms", "p99", "max")  # fmt: skip
    times = [percentile(o.refused, share) * 1e3 for share in (0.5, 0.99, 1.0)]
    counts = [len(o.refused), o.bare_refusals, o.server_errors, o.others]
    ratio = o.goodput / o.capacity if o.capacity else 0.0
    row = [f"{o.capacity:.1f}", f"{o.goodput:.1f}", f"{ratio:.3f}", str(o.answered), *map(str, counts)]
    return Table("ten times the capacity", columns, [[*row, *(f"{t:.2f}" for t in times)]])


def _fairness(f: Fairness) -> Table:
    columns = ("light tenant", "p50 ms", "p95 ms", "p95 wait ms", "answers")
    named = {"engine idle": f.idle, "engine full, nobody else waits": f.busy, "beside a flood of 10x": f.flooded}
    cells = [
        [name, *(f"{x * 1e3:.0f}" for x in (percentile(v, 0.5), percentile(v, 0.95), f.wait(v))), str(len(v))]
        for name, v in named.items()
    ]
    return Table(f"a light tenant (one answer takes {SERVICE * 1e3:.0f} ms)", columns, cells)


def _vanished(v: Vanished) -> Table:
    columns = ("clients", "left in the engine", "left in its queue", "aborted in it", "tasks left", "empty after ms")
    counts = (v.clients, v.running, v.waiting, v.aborted, v.tasks)
    return Table("clients that vanish", columns, [[*map(str, counts), f"{v.seconds * 1e3:.0f}"]])


def targets(found: Found) -> list[list[str]]:
    """Claim, figure, bar, and whether it holds; the worst of our own contenders counts."""
    said: list[list[str]] = []

    def claim(what: str, value: float, bar: float, unit: str, least: bool = False) -> None:
        holds = value >= bar if least else value <= bar
        said.append(
            [what, f"{value:.2f} {unit}", f"{'>=' if least else '<='} {bar:g} {unit}", "ok" if holds else "MISSED"]
        )

    for name in OURS:
        mine = [row for row in found.rows if row.name == name]
        if mine:
            claim(f"{name}: added latency p50, worst cell", max(r.added_p50 for r in mine) * 1e3, 1.0, "ms")
            claim(f"{name}: added latency p99, worst cell", max(r.added_p99 for r in mine) * 1e3, 3.0, "ms")
        for one in found.cpu:
            if one.name == name:
                claim(f"{name}: CPU per streamed chunk", one.added_chunk * 1e6, 20.0, "us")
    for m in found.memory:
        if m.name != "bare":
            claim(f"{m.name}: growth over {m.requests} requests", (m.end - m.begin) / 1e6, 20.0, "MB")
    if (o := found.overload) is not None:
        claim("goodput at 10x, of that at capacity", 100 * o.goodput / o.capacity if o.capacity else 0, 95, "%", True)
        claim("refusals, slowest", max(o.refused, default=0) * 1e3, 20, "ms")
        claim("5xx, 429 without Retry-After, others", o.server_errors + o.bare_refusals + o.others, 0, "")
    if (f := found.fairness) is not None:
        claim("light tenant beside a flood: p95 wait, of that with a full engine",
              f.wait(f.flooded) / max(f.wait(f.busy), 1e-9), 3, "x")  # fmt: skip
        claim("the same: p95 of an answer, of that with an idle engine",
              percentile(f.flooded, 0.95) / percentile(f.idle, 0.95), 3, "x")  # fmt: skip
    if (v := found.vanished) is not None:
        claim("left behind by vanished clients: requests, tasks", v.running + v.waiting + max(v.tasks, 0), 0, "")
    return said


def show(console: Console, found: Found) -> None:
    for one in tables(found):
        made = RichTable(title=one.title, padding=(0, 1), title_justify="left", title_style="bold")
        for i, column in enumerate(one.columns):
            made.add_column(column, justify="right" if i else "left")
        for row in one.rows:
            made.add_row(*row)
        if one.columns[0] == "contender" and one.title != "memory":
            for name, why in found.absent.items():
                made.add_row(name, why, *[""] * (len(one.columns) - 2), style="dim")
        console.print(made)
    console.print(NOTES, style="dim")


def markdown(found: Found, lines: Sequence[str]) -> str:
    made = ["# Gateway: measured", "", *(f"- {line}" for line in lines), ""]
    for one in tables(found):
        made += [
            f"## {one.title}",
            "",
            "| " + " | ".join(one.columns) + " |",
            "|---|" + "---:|" * (len(one.columns) - 1),
        ]
        made += ["| " + " | ".join(row) + " |" for row in one.rows]
        if one.columns[0] == "contender" and one.title != "memory":
            made += [f"| {name} | {why} |" + " |" * (len(one.columns) - 2) for name, why in found.absent.items()]
        made.append("")
    return "\n".join([*made, NOTES, ""])


def data(found: Found) -> Mapping[str, Any]:
    """For JSON."""
    return {**asdict(found), "targets": targets(found)}
