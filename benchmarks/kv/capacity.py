"""`thriftree bench kv --only capacity`: how many requests the same bytes of cache serve at once."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from thriftree.benchmarks import fleet, machine
from thriftree.benchmarks.contenders import EngineSpec
from thriftree.benchmarks.kv import served
from thriftree.benchmarks.kv.served import BLOCK, Filled
from thriftree.benchmarks.kv.texts import prompts
from thriftree.benchmarks.worker import Ask

_PAGE = 150
_CONTEXT = 2048
_CHUNK = 512  # tokens of a step
_TOKENS = 64  # of an answer
_SPREAD = 0.125  # prompts are so much longer or shorter than the mean
_TOO_LONG = 1500  # tokens of the prompt that is larger than its pool
#: row -> engine, what its requests ask for.
ROWS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "stock": ("stock", None),
    "off": ("heads off", None),
    "streaming_llm": ("heads off", {"method": "streaming_llm"}),
    "snapkv": ("heads off", {"method": "snapkv"}),
    "keydiff, per head": ("heads off", {"method": "keydiff", "per_head": True}),
    "razor_observed": ("heads", {"method": "razor_observed"}),
    "razor_keydiff, per head": ("heads", {"method": "razor_keydiff", "per_head": True}),
    "snapkv, cap": ("cap", {"method": "snapkv"}),
    "razor_observed, cap": ("heads, cap", {"method": "razor_observed"}),
}
#: engine -> heads, whether --kv-max-tokens is the budget
_ENGINES = {
    "stock": (None, False),
    "heads off": ("off", False),
    "heads": ("default", False),
    "cap": ("off", True),
    "heads, cap": ("default", True),
}
COLUMNS = ("row", "reported", "max", "mean", "x stock", "context", "steps", "preempted", "wall s", "tokens/s")
NOTES = (
    "reported: requests of the full context that the engine says it has room for; max, mean: requests running at once "
    "(mean over the steps); x stock: of the mean; context: tokens that the running requests have read or written, the "
    "most in a step; preempted: how often a request lost its cache and began again; tokens/s: of all answers. cap: "
    "with --kv-max-tokens at the budget, under which a prompt is compressed while it is read and never held whole."
)


@dataclass(frozen=True)
class Outcome:
    """One row."""

    row: str
    pool: dict[str, Any]
    filled: Filled

    def cells(self, base: Outcome | None) -> list[str]:
        run = self.filled
        gain = "" if base is None else f"{fmean(run.running) / fmean(base.filled.running):.2f}"
        return [
            self.row, f"{self.pool['max_concurrency']:.2f}", str(max(run.running)), f"{fmean(run.running):.1f}", gain,
            str(max(run.context)), str(run.steps), str(run.preemptions), f"{run.wall:.0f}",
            f"{run.tokens / run.wall:.1f}",
        ]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench kv --only capacity", description=__doc__)
    add = made.add_argument
    add("--model", help="a folder or a hub id (default: the default model)")
    add("--requests", type=int, default=24, help="that come at once (default: 24)")
    add("--budget", type=int, default=128, help="rows that a compressed request keeps (default: 128)")
    add("--times", type=float, default=8, help="the mean prompt, in budgets (default: 8)")
    add("--pool", type=int, default=4352, help="tokens that plain vLLM can hold (default: 4352)")
    add("--rows", nargs="+", metavar="NAME", help=f"of {', '.join(map(repr, ROWS))}")
    add("--no-refusal", action="store_true", help="do not try the prompt that is larger than its pool")
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
    found = machine.conditions(["kv", "--only", "capacity", *argv])
    try:
        outcomes, told = measure(args, notes.print)
    except (fleet.EngineFailed, OSError, ValueError) as error:
        print(f"thriftree bench kv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    machine.finish(found)
    _report(args, found, outcomes, told, console)
    return 0 if all(outcome.filled.leaked == 0 for outcome in outcomes) else 1


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Outcome], list[str]]:
    """Rows one after the other, each engine alone; and what became of the prompt that is larger than its pool."""
    from thriftree.zoo import smollm2

    args.model = args.model or str(smollm2.ensure())
    draw = random.Random(0)
    mean = args.budget * args.times
    lengths = [round(mean * draw.uniform(1 - _SPREAD, 1 + _SPREAD)) for _ in range(args.requests)]
    texts = prompts(args.model, lengths)
    rows = [row for row in ROWS if row in (args.rows or ROWS)]
    outcomes = []
    for key in dict.fromkeys(ROWS[row][0] for row in rows):
        with fleet.running([_engine(args, key, args.pool)], say) as running:
            member = running.turn_of(key)
            pool = member.call("pool")
            for row in (row for row in rows if ROWS[row][0] == key):
                kv = ROWS[row][1]
                extra = served.asking(None if kv is None else {**kv, "budget": args.budget})
                asks = [Ask(ids, _TOKENS, row, extra, ignore_eos=True) for ids in texts]
                outcomes.append(Outcome(row, pool, member.call("fill", asks)))
                say(f"{row}: {outcomes[-1].filled.steps} steps")
    return outcomes, [] if args.no_refusal else list(_too_long(args, say))


def _too_long(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[str]:
    """A pool of half a prompt: does plain vLLM start, and does ours serve it?"""
    pool = _TOO_LONG // 2 // BLOCK * BLOCK
    for key in ("stock", "cap"):
        try:
            with fleet.running([_engine(args, key, pool)], say) as running:
                extra = served.asking(None if key == "stock" else {"method": "snapkv", "budget": args.budget})
                ids = prompts(args.model, [_TOO_LONG])[0]
                ask = Ask(ids, _TOKENS, "long", extra, ignore_eos=True)
                filled: Filled = running.turn_of(key).call("fill", [ask])
                yield f"pool of {pool} tokens, prompt of {_TOO_LONG}: {key} serves it, {filled.tokens} tokens"
        except fleet.EngineFailed as refused:
            why = next((line for line in str(refused).splitlines() if "KV cache" in line), str(refused).splitlines()[0])
            yield f"pool of {pool} tokens, prompt of {_TOO_LONG}: {key} does not start ({why.strip()[:200]})"


def _engine(args: argparse.Namespace, key: str, pool: int) -> EngineSpec:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(args.model)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * dim
    heads, cap = _ENGINES[key]
    flags = served.flags(
        heads,
        args.budget if cap else None,
        kv_cache_memory_bytes=row * (pool + BLOCK),  # a block is vLLM's own
        max_num_batched_tokens=_CHUNK,
        max_num_seqs=max(args.requests, 1),
    )
    return EngineSpec(key, args.model, "float32", args.eager, _CONTEXT, flags, "thriftree.benchmarks.kv.served:Pooled")


def _report(
    args: argparse.Namespace, found: dict[str, Any], outcomes: Sequence[Outcome], told: Sequence[str], console: Console
) -> None:
    base = next((outcome for outcome in outcomes if outcome.row == "stock"), None)
    title = f"capacity: {args.requests} requests in a pool of {args.pool} tokens, budget {args.budget}"
    table = Table(title=title, padding=(0, 1), title_justify="left", title_style="bold")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i else "left")
    for outcome in outcomes:
        table.add_row(*outcome.cells(base))
    console.print(table)
    console.print(NOTES, style="dim")
    pools = {f"{o.pool['bytes'] / 2**20:.1f} MiB in {o.pool['groups']} groups" for o in outcomes}
    said = [
        f"`{found['command']}`",
        machine.line(found),
        f"model {Path(args.model).name}, float32, blocks of {BLOCK} tokens, {_CHUNK} tokens a step, prompts of "
        f"{args.budget * args.times:.0f} tokens in the mean, {_TOKENS} tokens an answer; pools: {', '.join(pools)}",
        *told,
        *(f"WARNING: {o.row}: {o.filled.leaked} blocks did not come back" for o in outcomes if o.filled.leaked),
        *(f"WARNING: {text}" for text in machine.warnings(found)),
    ]
    for text in said:
        console.print(text, soft_wrap=True, highlight=False, style="yellow" if text.startswith("WARNING") else "")
    if args.json is not None:
        rows = [{"row": o.row, "pool": o.pool, **vars(o.filled)} for o in outcomes]
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result = {"conditions": found, "options": options, "lines": said, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
