"""`thriftree bench kv`: what answers lose when the cache is compressed, for every method, beside controls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from thriftree.benchmarks import machine
from thriftree.benchmarks.kv import report, rows
from thriftree.benchmarks.kv.checks import check
from thriftree.benchmarks.kv.lab import Lab
from thriftree.benchmarks.kv.policies import Policy
from thriftree.benchmarks.kv.quality import Figure, Stopped, run
from thriftree.benchmarks.kv.tasks import SPLITS, TASKS, Encode, cases
from thriftree.plugins.kv_cache.heads import HeadFile, shipped

_PAGE = 150
#: task -> cases in (short form, long form)
_COUNTS = {"lookup": (5, 50), "passkey": (5, 50), "plays": (2, 10), "maths": (2, 10)}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench kv", description=__doc__)
    add = made.add_argument
    add("--only", choices=["quality", "capacity", "cost"], help="one part, `--only cost --help` has its flags")
    add("--full", action="store_true", help="the long form: all policies, 100 questions, 20 texts (half an hour)")
    add("--model", help="a folder or a hub id (default: the default model)")
    add("--heads", type=Path, metavar="FILE", help="its head file (default: the shipped one)")
    add("--candidates", action="store_true", help="instead: what the shipped setting was picked from")
    add("--policies", nargs="+", metavar="NAME", help="rows of the table (default: a choice; full: all)")
    add(
        "--keep", nargs="+", type=float, metavar="SHARE", default=list(rows.KEEP), help="budgets (default: %(default)s)"
    )
    for task in TASKS:
        add(
            f"--{task}",
            type=int,
            metavar="N",
            help=f"cases of this task (default: {_COUNTS[task][0]}, {_COUNTS[task][1]})",
        )
    add("--split", choices=SPLITS, default="test", help="dev is for picking settings (default: test)")
    add("--checkpoint", type=Path, metavar="FILE", help="figures so far: a run that was stopped goes on")
    add("--minutes", type=float, default=600, help="stop after that, between two cases, with exit code 3")
    add("--json", type=Path, metavar="FILE", help="everything")
    add("--markdown", type=Path, metavar="FILE", help="the table as a page")
    return made


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Flags with their defaults. SystemExit (argparse) or ValueError says what is wrong."""
    args = parser().parse_args(argv)
    for task, counts in _COUNTS.items():
        if getattr(args, task) is None:
            setattr(args, task, counts[args.full])
        if getattr(args, task) < 0:
            raise ValueError(f"--{task} must be at least 0")
    if any(not 0 < keep <= 1 for keep in args.keep):
        raise ValueError("--keep: shares of the prompt, above 0, at most 1")
    known = {policy.name: policy for policy in (*rows.policies(), *rows.candidates())}
    for name in args.policies or ():
        if name not in known:
            raise ValueError(f"--policies: no {name!r}; there are {', '.join(map(repr, known))}")
    for path in (args.json, args.markdown, args.checkpoint):
        if path is not None and not path.resolve().parent.is_dir():
            raise ValueError(f"no folder {path.resolve().parent} to write {path.name} in")
    return args


def main(argv: list[str]) -> int:
    console, notes = Console(width=None if sys.stdout.isatty() else _PAGE), Console(stderr=True, style="dim")
    try:
        args = options(argv)
    except ValueError as error:
        print(f"thriftree bench kv: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    conditions = machine.conditions(["kv", *argv])
    try:
        found, said = _measure(args, notes.print)
    except Stopped as stopped:
        print(f"thriftree bench kv: stopped at {stopped}, run it again to go on", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"thriftree bench kv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    machine.finish(conditions)
    _report(args, conditions, found, said, console)
    return 0


def _policies(args: argparse.Namespace) -> list[Policy]:
    if args.policies:
        return [policy for policy in (*rows.policies(), *rows.candidates()) if policy.name in args.policies]
    if args.candidates:
        return rows.candidates()
    return rows.policies() if args.full else rows.short()


def _measure(args: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Figure], list[str]]:
    from thriftree.zoo import smollm2

    model = args.model or str(smollm2.ensure())
    lab, encode = Lab(model), _encoder(model)
    checked = check(lab, model, next(cases("plays", args.split, 1, encode)).context[:256])
    say(str(checked))
    if not checked.right:
        raise ValueError(f"the instrument is wrong on this model; {checked}")
    made = _policies(args)
    grid = [(policy, keep) for policy in made for keep in args.keep]
    counts = {task: getattr(args, task) for task in TASKS}
    found = run(
        lab, encode, args.split, counts, grid, _heads(args, lab), args.checkpoint, args.minutes * 60, say
    )  # fmt: skip
    name = Path(model).name if Path(model).is_dir() else model
    said = [
        f"model {name}, float32, plain torch; split {args.split}: {', '.join(f'{n} {t}' for t, n in counts.items())}"
    ]
    return found, [*said, str(checked)]


def _heads(args: argparse.Namespace, lab: Lab) -> HeadFile:
    """
    Raises:
        ValueError: none given and none shipped, or another model's.
    """
    file = HeadFile.load(args.heads) if args.heads else shipped(lab.shape)
    if file is None:
        raise ValueError("no head file for this model: `thriftree probe heads MODEL --out FILE`, then --heads FILE")
    file.check(lab.shape)
    return file


def _encoder(model: str) -> Encode:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _report(
    args: argparse.Namespace, conditions: dict[str, Any], found: list[Figure], said: list[str], console: Console
) -> None:
    made = report.cells(found)
    lines = [f"`{conditions['command']}`", machine.line(conditions), *said, *report.verdicts(made)]
    lines += [f"WARNING: {text}" for text in machine.warnings(conditions) if "uncommitted" in text]
    order = [policy.name for policy in _policies(args)]
    report.show(console, made, order)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, style="yellow" if line.startswith("WARNING") else "")
    if args.json is not None:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result = {"conditions": conditions, "options": options, "lines": lines, "cells": report.data(made)}
        result["figures"] = [vars(figure) for figure in found]
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown is not None:
        args.markdown.write_text(report.markdown(made, order, lines))
