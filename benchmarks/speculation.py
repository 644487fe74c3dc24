"""`thriftree bench speculation`: plain vLLM, vLLM's own drafters and token trees, on the same prompts, in turns."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from thriftree.benchmarks import contenders, fleet, machine, measure, plot, prompts, stats, summary, table
from thriftree.benchmarks.contenders import Contender
from thriftree.benchmarks.measure import Pass, Sample

_WAVES = 2  # prompts of a group, in batches: the second enters as the first finishes
_FEWEST = 8  # prompts in a row of the table at batch 2 and more
_PAGE = 120  # columns where the output is no terminal
_CONTEXT = 4096  # what `thriftree serve` gives the default model


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench speculation", description=__doc__)
    add = made.add_argument
    add("--full", action="store_true", help="the long form: 3 prompts a pass, cold and warm, batch to 16, both dtypes")
    add("--dtype", nargs="+", choices=["float32", "bfloat16"], help="default: float32")
    add("--batch", nargs="+", type=int, help="requests in flight (default: 1 2 4 8)")
    add("--methods", nargs="+", metavar="NAME", help=f"{' '.join(contenders.STOCK + contenders.TREES)}")
    add("--categories", nargs="+", metavar="NAME", help="only these categories of prompts")
    add("--prompts", type=int, help="prompts per category and pass (default: 1)")
    add("--groups", type=int, help="groups of prompts per batch above 1 (default: enough for 8 prompts)")
    add("--tokens", type=int, default=96, help="longest answer (default: 96)")
    add("--cold", action="store_true", help="drafters begin empty (default)")
    add("--warm", action="store_true", help="then other prompts of the same categories with what was learned")
    add("--replayed", action="store_true", help="then the first prompts again: an upper bound, not a claim")
    add("--seed", type=int, default=0)
    add("--model", metavar="PATH", help="a folder or a hub id (default: the model that `thriftree serve` serves)")
    add("--eager", action="store_true", help="without compilation, which `thriftree serve` has on")
    add("--separate", action="store_true", help="an engine process for every tree method")
    add("--ngram-tokens", type=int, default=4, help="num_speculative_tokens of vLLM's ngram (default: 4)")
    add("--json", type=Path, metavar="FILE", help="everything, turn by turn")
    add("--markdown", type=Path, metavar="FILE", help="the tables as a page")
    add("--plot", type=Path, metavar="FILE.png", help="gain against batch (needs matplotlib)")
    return made


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Flags with their defaults. SystemExit (argparse) or ValueError says what is wrong."""
    args = parser().parse_args(argv)
    args.dtype = list(dict.fromkeys(args.dtype or (["float32", "bfloat16"] if args.full else ["float32"])))
    args.batch = sorted(set(args.batch or ([1, 2, 4, 8, 16] if args.full else [1, 2, 4, 8])))
    args.prompts = args.prompts or (3 if args.full else 1)
    args.groups = args.groups or (3 if args.full else 1)
    args.warm = args.warm or args.full
    args.batched = tuple(args.methods or contenders.BATCHED)
    args.methods = tuple(args.methods or contenders.DEFAULT + (("off_again", "tree_off") if args.full else ()))
    contenders.check(args.methods)
    for name, least in (("batch", 1), ("prompts", 1), ("groups", 1), ("tokens", 2), ("ngram_tokens", 1)):
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}")
    known = prompts.load()
    unknown = [name for name in args.categories or () if name not in known]
    if unknown:
        raise ValueError(f"--categories {' '.join(unknown)}: there are {', '.join(known)}")
    for path in (args.json, args.markdown, args.plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise ValueError(f"no folder {path.resolve().parent} to write {path.name} in")
    if args.plot is not None:
        plot.check(args.plot)
    return args


def main(argv: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else _PAGE)
    notes = Console(stderr=True, style="dim")
    try:
        args = options(argv)
    except ValueError as error:
        print(f"thriftree bench speculation: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    found = machine.conditions(["speculation", *argv])
    try:
        args.model = args.model or _default_model()
        samples, engines = _measure(args, found, notes)
    except (fleet.EngineFailed, OSError, RuntimeError, ValueError) as error:
        print(f"thriftree bench speculation: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return _report(args, found, samples, engines, console)


def _default_model() -> str:
    from thriftree.zoo import smollm2

    return str(smollm2.ensure())


def _measure(
    args: argparse.Namespace, found: dict[str, Any], notes: Console
) -> tuple[list[Sample], dict[str, dict[str, Any]]]:
    chosen = [p for name, members in prompts.load().items() if name in (args.categories or [name]) for p in members]
    context = prompts.context(args.model, _CONTEXT)
    *encoded, warm = prompts.encode([*chosen, measure.warm_up_prompt()], args.model, context - args.tokens - 1)
    samples: list[Sample] = []
    engines: dict[str, dict[str, Any]] = {}
    for dtype in args.dtype:
        names = [n for n in dict.fromkeys((*args.methods, *args.batched)) if contenders.missing(n) is None]
        rivals = contenders.build(
            names,
            model=args.model,
            dtype=dtype,
            eager=args.eager,
            max_model_len=context,
            separate=args.separate,
            ngram_tokens=args.ngram_tokens,
        )
        with fleet.running([one.engine for one in rivals], notes.print) as running:
            found[f"idle_cores_{dtype}"] = round(running.idle_share(), 3)
            samples += _passes(args, dtype, running, rivals, encoded, warm.ids, notes)
            for key, member in running.members.items():
                drafters = running.turn_of(key).call("stats")
                engines[f"{dtype}/{key}"] = {**member.facts, "flags": member.spec.flags, "stats": drafters}
            running.rest()
            machine.finish(found)
    return samples, engines


def _passes(
    args: argparse.Namespace,
    dtype: str,
    running: fleet.Fleet,
    rivals: Sequence[Contender],
    encoded: Sequence[prompts.Prompt],
    warm: Sequence[int],
    notes: Console,
) -> list[Sample]:
    lists = prompts.passes(encoded, args.prompts, 2 if args.warm else 1, args.seed)
    samples: list[Sample] = []
    for batch in args.batch:
        here = [one for one in rivals if one.name in (args.methods if batch == 1 else args.batched)]
        measure.warm_up(running, here, warm, batch, 32)
        if batch == 1:
            phases = [("cold", lists[0]), *([("warm", lists[1])] if args.warm else [])]
            phases += [("replayed", lists[0])] if args.replayed else []
            works = [Pass(dtype, name, 1, "b1", [[p] for p in part], args.tokens) for name, part in phases]
        else:
            enough = max(args.groups, -(-_FEWEST // (batch * _WAVES)))
            many = prompts.groups(encoded, batch, _WAVES, enough, args.seed)
            works = [Pass(dtype, "cold", batch, f"b{batch}", many, args.tokens)]
        for work in works:
            for i, sample in enumerate(measure.run(running, here, work)):
                samples.append(sample)
                if (i + 1) % len(here) == 0:
                    notes.print(f"{dtype} batch {batch} {work.phase}: {(i + 1) // len(here)} of {len(work.groups)}")
    return samples


def _report(
    args: argparse.Namespace,
    found: dict[str, Any],
    samples: Sequence[Sample],
    engines: dict[str, dict[str, Any]],
    console: Console,
) -> int:
    rows = summary.rows(samples, args.seed)
    found["foreign_turns"] = stats.percentile([sample.foreign for sample in samples], 0.5)
    absent = {name: why for name in args.methods if (why := contenders.missing(name))}
    gains = {dtype: summary.gains(rows, dtype) for dtype in args.dtype}
    exact = _exactness(rows)
    shape = "eager" if args.eager else ", ".join(sorted({facts["compilation"] for facts in engines.values()}))
    lines = [
        f"`{found['command']}`",
        machine.line(found),
        f"model {Path(args.model).name}, {' and '.join(args.dtype)}, {shape}, greedy, at most {args.tokens} tokens, "
        f"seed {args.seed}; worker threads "
        f"{'/'.join(map(str, sorted({facts['threads'] for facts in engines.values()})))}; "
        f"tree engine as `thriftree serve` sets it; resting engines use "
        f"{max(found[f'idle_cores_{dtype}'] for dtype in args.dtype):.2f} cores",
        *summary.crossings(rows),
        *exact,
        *(f"WARNING: {text}" for text in machine.warnings(found)),
    ]
    table.show(console, rows, absent)
    for dtype in args.dtype:
        console.print(plot.text(gains[dtype], f"gain against requests in flight, {dtype}, cold"), highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, style="yellow" if line.startswith("WARNING") else "")
    result = {
        "conditions": found,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "engines": engines,
        "absent": absent,
        "lines": lines,
        "rows": [row.as_dict() for row in rows],
        "samples": [sample.as_dict() for sample in samples],
    }
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown is not None:
        args.markdown.write_text(table.markdown(rows, absent, result))
    if args.plot is not None:
        plot.png(gains, args.plot, machine.line(found))
    # our trees are exact in float32 or it is a bug; in bfloat16 rows of other shapes round otherwise, which is told
    ours = (row for row in rows if row.dtype == "float32" and row.method in contenders.TREES)
    return 1 if any(row.mismatches for row in ours) else 0


def _exactness(rows: Sequence[summary.Row]) -> list[str]:
    """How many answers differ from plain vLLM's, per dtype and method."""
    said = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        mine = [row for row in rows if row.dtype == dtype and row.category == summary.ALL and row.method != "off"]
        by = {m: [r for r in mine if r.method == m] for m in dict.fromkeys(row.method for row in mine)}
        told = [f"{m} {sum(r.mismatches for r in rs)}/{sum(r.requests for r in rs)}" for m, rs in by.items()]
        said.append(f"{dtype}: answers that differ from plain vLLM: {', '.join(told) or 'nothing to compare'}")
    return said
