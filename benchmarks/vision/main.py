"""`thriftree bench vision`: right answers when the language model gets fewer tokens of each image, beside controls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thriftree.benchmarks import machine
from thriftree.benchmarks.vision import report
from thriftree.benchmarks.vision.policies import KEEPS, SHORT, late_cells, policies
from thriftree.benchmarks.vision.quality import Figure, Model, Stopped, run
from thriftree.zoo.cache import ZooError

_PAGE = 150
_FULL, _SHORT = (3, 1001), (1, 112)  # draws, questions in each: whole turns of 7 kinds and 4 styles in the short one


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench vision", description=__doc__)
    add = made.add_argument
    add("--only", choices=("quality", "time"), help="one part (`--only time --help` has its flags)")
    add("--full", action="store_true", help="the long form: all policies and budgets, 3 draws of 1,001 questions")
    add("--model", help="a checkpoint that knows the questions (default: zoo:shapes-vl)")
    add("--policies", nargs="+", metavar="NAME", help="rows of the table")
    add("--keep", nargs="+", type=float, metavar="SHARE", help=f"budgets (full: {' '.join(map(str, KEEPS))})")
    add("--late-layer", type=int, metavar="L", help="rows too whose visual tokens leave at layer L")
    add("--questions", type=int, help=f"in a draw (default: {_SHORT[1]}, {_FULL[1]})")
    add("--seeds", type=int, help=f"draws of questions (default: {_SHORT[0]}, {_FULL[0]})")
    add("--checkpoint", type=Path, metavar="FILE", help="figures so far: a run that was stopped goes on")
    add("--minutes", type=float, default=1e6, help="stop after that, between two cells, with exit code 3")
    add("--json", type=Path, metavar="FILE", help="everything")
    add("--markdown", type=Path, metavar="FILE", help="the tables as a page")
    return made


def main(argv: list[str]) -> int:
    console, notes = Console(width=None if sys.stdout.isatty() else _PAGE), Console(stderr=True, style="dim")
    try:
        args = parser().parse_args(argv)
        seeds, questions = _FULL if args.full else _SHORT
        args.seeds, args.questions = args.seeds or seeds, args.questions or questions
        args.keep = args.keep or (list(KEEPS) if args.full else [0.33, 0.11])
        chosen = policies(tuple(args.policies) if args.policies else None if args.full else SHORT)
        if not all(0 < keep <= 1 for keep in args.keep) or args.seeds < 1 or args.questions < 1:
            raise ValueError("--keep must be above 0 and at most 1, --seeds and --questions at least 1")
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    except ValueError as error:
        print(f"thriftree bench vision: {error}", file=sys.stderr)
        return 2
    found = machine.conditions(["vision", *argv])
    try:
        figures = _measure(args, chosen, notes.print)
    except ZooError as error:
        print(f"thriftree bench vision: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"thriftree bench vision: stopped before {stopped}; run it again to go on", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    machine.finish(found)
    _report(args, found, figures, console)
    return 0


def _measure(args: argparse.Namespace, chosen: Sequence[Any], say: Any) -> list[Figure]:
    from thriftree.zoo import catalogue

    args.model = args.model or "zoo:shapes-vl"
    path, _ = catalogue.resolve(args.model)
    cells: list[Any] = [(policy, keep) for policy in chosen for keep in args.keep]
    if args.late_layer is not None:
        cells += late_cells(args.late_layer, args.keep)
    return run(Model(path, args.late_layer), cells, args.questions, args.seeds, args.checkpoint, args.minutes * 60, say)


def _report(args: argparse.Namespace, found: dict[str, Any], figures: Sequence[Figure], console: Console) -> None:
    heads, lines = report.cells(figures)
    by_kind = report.kinds(figures, min(args.keep, key=lambda keep: abs(keep - 0.11)))
    report.show(console, "right answers, %", heads, lines)
    report.show(console, "right answers by kind of question, %", *by_kind)
    said = [
        report.NOTES,
        f"`{found['command']}`",
        machine.line(found),
        f"model {args.model}, float32, vLLM's engine, eager; {args.seeds} draws of {args.questions} held-out questions",
        *report.verdicts(figures),
        *(f"WARNING: {text}" for text in machine.warnings(found) if "uncommitted" in text),
    ]
    for text in said:
        console.print(text, soft_wrap=True, highlight=False, style="yellow" if text.startswith("WARNING") else "dim")
    if args.json is not None:
        result = {"conditions": found, "lines": said, "figures": [asdict(figure) for figure in figures]}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown is not None:
        page = [report.markdown(heads, lines), report.markdown(*by_kind), *(f"{text}\n" for text in said)]
        args.markdown.write_text("\n".join(page))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
