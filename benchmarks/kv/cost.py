"""`thriftree bench kv --only cost`: what compression costs a decode step, beside a plain cache of equal length."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thriftree.benchmarks import fleet, machine, stats
from thriftree.benchmarks.contenders import EngineSpec
from thriftree.benchmarks.kv import cost_table, served
from thriftree.benchmarks.kv.cost_table import BASE, WHOLE, Sample
from thriftree.benchmarks.kv.served import BLOCK
from thriftree.benchmarks.kv.texts import prompts
from thriftree.benchmarks.worker import Ask, Turn

_PAGE = 150
_GAPS = 2 * BLOCK  # decode steps that are timed: every one of them two blocks long holds two events
_CONTEXT = 2048
_MANY = 4  # from this batch on
#: row -> engine, what its requests ask for ("equal": nothing, with a prompt as long as a compressed cache).
ROWS: dict[str, tuple[str, dict[str, Any] | None]] = {
    BASE: ("stock", None),
    "stock again": ("stock again", None),
    WHOLE: ("stock", None),
    "available, off": ("heads off", None),
    "available with a head file, off": ("heads", None),
    "streaming_llm": ("heads off", {"method": "streaming_llm"}),
    "snapkv": ("heads off", {"method": "snapkv"}),
    "keydiff": ("heads off", {"method": "keydiff"}),
    "observed": ("heads off", {"method": "observed"}),
    "keydiff, per head": ("heads off", {"method": "keydiff", "per_head": True}),
    "razor_observed": ("heads", {"method": "razor_observed"}),
    "razor_keydiff, per head": ("heads", {"method": "razor_keydiff", "per_head": True}),
}
_HEADS = {"stock": None, "stock again": None, "heads off": "off", "heads": "default"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench kv --only cost", description=__doc__)
    add = made.add_argument
    add("--model", help="a folder or a hub id (default: the default model)")
    add("--batch", nargs="+", type=int, default=[1, 8], help="requests in flight (default: 1 8)")
    add("--budget", type=int, default=512, help="rows that a compressed request keeps (default: 512)")
    add("--prompt", type=int, help="tokens of its prompt (default: twice the budget, from batch 4 on a quarter above)")
    add("--rounds", type=int, default=3, help="turns of every row (default: 3)")
    add("--rows", nargs="+", metavar="NAME", help=f"of {', '.join(map(repr, ROWS))}")
    add("--eager", action="store_true", help="without compilation")
    add("--json", type=Path, metavar="FILE", help="everything")
    return made


def main(argv: list[str]) -> int:
    console, notes = Console(width=None if sys.stdout.isatty() else _PAGE), Console(stderr=True, style="dim")
    try:
        args = parser().parse_args(argv)
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    unknown = [name for name in args.rows or () if name not in ROWS]
    if unknown:
        print(f"thriftree bench kv: --rows {unknown[0]!r}: there are {', '.join(map(repr, ROWS))}", file=sys.stderr)
        return 2
    args.rows = ["stock", *(name for name in ROWS if name != "stock" and name in (args.rows or ROWS))]
    args.prompt = {n: args.prompt or args.budget + args.budget // (1 if n < _MANY else 4) for n in args.batch}
    found = machine.conditions(["kv", "--only", "cost", *argv])
    try:
        samples, groups = measure(args, notes.print, found)
    except (fleet.EngineFailed, OSError, ValueError) as error:
        print(f"thriftree bench kv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _report(args, found, samples, groups, console)
    return 0


def measure(
    args: argparse.Namespace,
    say: Callable[[str], None],
    found: dict[str, Any],
    alone: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[list[Sample], dict[str, int]]:
    """All turns, and how many KV cache groups each engine has. Who begins moves on by one with each round.

    `alone`: entered for every start and every round, where others want the machine in between.
    """
    from thriftree.zoo import smollm2

    args.model = args.model or str(smollm2.ensure())
    samples: list[Sample] = []
    with ExitStack() as stack:
        with alone():
            engines = [_engine(args, name) for name in dict.fromkeys(ROWS[row][0] for row in args.rows)]
            running = stack.enter_context(fleet.running(engines, say))
            groups = {key: running.turn_of(key).call("groups") for key in running.members}
            running.rest()
        for batch in args.batch:
            for number in range(-1, args.rounds):  # the first for compiled kernels and allocated memory
                with alone():
                    turns = _round(args, running, batch, number)
                    running.rest()
                samples += turns if number >= 0 else []
                say(f"batch {batch}: {number + 1} of {args.rounds} rounds")
        machine.finish(found)
    found["foreign_turns"] = stats.percentile([sample.foreign for sample in samples], 0.5)
    return samples, groups


def _round(args: argparse.Namespace, running: fleet.Fleet, batch: int, number: int) -> list[Sample]:
    start = max(number, 0) % len(args.rows)
    turns = [_turn(args, running, row, batch, number) for row in (*args.rows[start:], *args.rows[:start])]
    return sorted(turns, key=lambda sample: args.rows.index(sample.row))


def _engine(args: argparse.Namespace, key: str) -> EngineSpec:
    flags = served.flags(_HEADS[key])
    return EngineSpec(key, args.model, "float32", args.eager, _CONTEXT, flags, "thriftree.benchmarks.kv.served:Timed")


def _turn(args: argparse.Namespace, running: fleet.Fleet, row: str, batch: int, number: int) -> Sample:
    key, kv = ROWS[row]
    # A compressed cache grows from the budget to one block more, between two events; the others grow as they decode.
    equal = args.budget + BLOCK // 2 - _GAPS // 2
    length = args.prompt[batch] if kv is not None or row == WHOLE else equal
    extra = served.asking(None if kv is None else {**kv, "budget": args.budget})
    fresh = batch < _MANY  # beyond that prompts come from the prefix cache where they can: decoding is timed
    salt = f"{row}/{batch}/{number if fresh else 0}"
    tokens = 1 + _GAPS + (4 if batch > 1 else 0)
    texts = prompts(args.model, [length] * batch, number * args.prompt[batch] if fresh and number > 0 else 0)
    asks = [Ask(ids, tokens, salt, extra, ignore_eos=True) for ids in texts]
    member = running.turn_of(key)
    member.call("spent")
    turn: Turn = member.call("generate", asks, batch)
    times = max(turn.answers, key=lambda answer: answer.arrivals[0]).arrivals
    gaps = [later - earlier for earlier, later in pairwise(times)][:_GAPS]
    spent, decode = member.call("spent"), times[-1] - times[0]
    return Sample(row, batch, number, length, times[0], gaps, round(turn.foreign, 2), decode, spent, fresh)


def _report(
    args: argparse.Namespace, found: dict[str, Any], samples: Sequence[Sample], groups: dict[str, int], console: Console
) -> None:
    tables = {}
    for batch in args.batch:
        made = list(cost_table.lines([sample for sample in samples if sample.batch == batch]))
        tables[batch] = cost_table.data(made)
        title = f"cost of a decode step, batch {batch}, budget {args.budget}"
        table = Table(title=title, padding=(0, 1), title_justify="left", title_style="bold")
        for i, column in enumerate(cost_table.COLUMNS):
            table.add_column(column, justify="right" if i else "left")
        for line in made:
            table.add_row(*line.cells())
        console.print(table)
    console.print(cost_table.NOTES, style="dim")
    said = [
        f"`{found['command']}`",
        machine.line(found),
        f"model {Path(args.model).name}, float32, {'eager' if args.eager else 'compiled'}, blocks of {BLOCK} tokens, "
        f"linear layers of vLLM everywhere; KV cache groups: {', '.join(f'{k} {n}' for k, n in groups.items())}",
        *(f"WARNING: {text}" for text in machine.warnings(found)),
    ]
    for text in said:
        console.print(text, soft_wrap=True, highlight=False, style="yellow" if text.startswith("WARNING") else "")
    if args.json is not None:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result: dict[str, Any] = {"conditions": found, "options": options, "lines": said, "groups": groups}
        result |= {"rows": tables, "samples": [asdict(sample) for sample in samples]}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
