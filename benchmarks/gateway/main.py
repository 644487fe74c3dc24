"""`thriftree bench gateway`: what the gateway costs, and what it owes under load; an engine in memory behind it."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from thriftree.benchmarks import machine
from thriftree.benchmarks.gateway import latency, litellm, memory, overload, report, servers
from thriftree.benchmarks.gateway.http import Failed

CONTENDERS = ("gateway", "keys+quota+log", "same, tokenizer", "remote", "LiteLLM")
PARTS = ("latency", "memory", "overload")
_PAGE = 120
#: option -> (short form, long form)
_SIZES = {
    "rounds": (150, 500),
    "bursts": (2, 4),
    "cpu_rounds": (1, 3),
    "requests": (2000, 20000),
    "clients": (200, 1000),
}
_OPEN_STREAMS = 200
_FAR = 4.0  # seconds of each load


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench gateway", description=__doc__)
    add = made.add_argument
    add("--full", action="store_true", help="the long form: 20,000 requests, 1,000 clients, LiteLLM installed")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--rounds", type=int, help="turns of single requests per cell (default: 150; full: 500)")
    add("--bursts", type=int, help="turns of 32 requests per cell (default: 2; full: 4)")
    add("--cpu-rounds", type=int, help="turns that CPU is measured in (default: 1; full: 3)")
    add("--tokens", type=int, default=200, help="of the streams that show the CPU of a chunk (default: 200)")
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME", help="beside bare")
    add("--requests", type=int, help="that memory must not grow over (default: 2000; full: 20000)")
    add("--clients", type=int, help="that vanish (default: 200; full: 1000)")
    add("--seconds", type=float, default=_FAR, help=f"of each load of the overload part (default: {_FAR:g})")
    add("--litellm", action="store_true", help="install LiteLLM's proxy in an environment of its own (750 MB), once")
    add("--no-litellm", action="store_true", help="leave it out, also where it is installed")
    add("--real", action="store_true", help="also real vLLM: its own server, then ours, one after the other (minutes)")
    add("--only-real", action="store_true", help="only that")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="everything")
    add("--markdown", type=Path, metavar="FILE", help="the tables as a page")
    return made


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Flags with their defaults. SystemExit (argparse) or ValueError says what is wrong."""
    args = parser().parse_args(argv)
    for name, (short, full) in _SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, full if args.full else short)
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if args.tokens < 2:
        raise ValueError("--tokens must be at least 2")
    if args.seconds <= 0.5:
        raise ValueError("--seconds must be above 0.5")
    if args.litellm and args.no_litellm:
        raise ValueError("--litellm and --no-litellm: one of them")
    for path in (args.json, args.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            raise ValueError(f"no folder {path.resolve().parent} to write {path.name} in")
    args.parts = [] if args.only_real else args.parts
    return args


def main(argv: list[str]) -> int:
    console, notes = Console(width=None if sys.stdout.isatty() else _PAGE), Console(stderr=True, style="dim")
    try:
        args = options(argv)
    except ValueError as error:
        print(f"thriftree bench gateway: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    conditions = machine.conditions(["gateway", *argv])
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are ended then, too
    try:
        found = _measure(args, notes.print)
    except (Failed, OSError) as error:
        print(f"thriftree bench gateway: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    machine.finish(conditions)
    _report(args, conditions, found, console)
    return 0


def _measure(args: argparse.Namespace, say: Callable[[str], None]) -> report.Found:
    import uvloop

    found = report.Found()
    with tempfile.TemporaryDirectory(prefix="thriftree-bench-", ignore_cleanup_errors=True) as folder:
        for part in args.parts:
            uvloop.run(_PARTS[part](args, found, Path(folder), say))
    if args.real or args.only_real:
        from thriftree.benchmarks.gateway import real

        found.real = real.measure(say)
    return found


async def _latency(args: argparse.Namespace, found: report.Found, folder: Path, say: Callable[[str], None]) -> None:
    with servers.running(folder, args.contenders, _tokenizer(args, found)) as made:
        try:
            if (why := _no_litellm(args)) is not None:
                found.absent["LiteLLM"] = why
            else:
                say(f"LiteLLM {await asyncio.to_thread(litellm.install)}")
                made["LiteLLM"] = await asyncio.to_thread(litellm.start, folder, made["bare"])
        except Failed as error:
            found.absent["LiteLLM"] = str(error)
        for cell in latency.CELLS:
            rounds = args.rounds if cell.concurrency == 1 else args.bursts
            try:
                found.rows += await latency.measure(made, cell, rounds, args.seed)
            except latency.Lost as lost:
                if lost.name != "LiteLLM":  # a contender that we only compare with goes, and the others stay
                    raise
                found.absent["LiteLLM"] = str(lost)
                made.pop("LiteLLM").stop()
                found.rows += await latency.measure(made, cell, rounds, args.seed)
            say(cell.title)
        found.cpu = await latency.cpu(made, args.cpu_rounds, args.tokens)
        say("CPU per request and chunk")


def _no_litellm(args: argparse.Namespace) -> str | None:
    if args.no_litellm or "LiteLLM" not in args.contenders:
        return "left out"
    if not (args.full or args.litellm or litellm.ready()):
        return "not installed (--litellm does it, in an environment of its own)"
    return None


def _tokenizer(args: argparse.Namespace, found: report.Found) -> str | None:
    """The default model's folder, if it is there: a benchmark of HTTP downloads no model."""
    from thriftree.zoo import smollm2

    if "same, tokenizer" in args.contenders and smollm2.ready(smollm2.path()):
        return str(smollm2.path())
    if "same, tokenizer" in args.contenders:
        found.absent["same, tokenizer"] = "the default model is not there (`thriftree serve` prepares it)"
    return None


async def _memory(args: argparse.Namespace, found: report.Found, folder: Path, say: Callable[[str], None]) -> None:
    with servers.running(folder, args.contenders, None) as made:
        found.memory = await memory.measure(made, args.requests, _OPEN_STREAMS)
    say(f"memory over {args.requests} requests")


async def _overload(args: argparse.Namespace, found: report.Found, folder: Path, say: Callable[[str], None]) -> None:
    with overload.gateway(folder) as server:
        found.overload = await overload.measure(server, args.seconds)
        say("overload")
        found.fairness = await overload.fairness(server, args.seconds)
        say("a light tenant beside a flood")
        found.vanished = await overload.vanish(server, args.clients, args.seed)
        say(f"{args.clients} clients that vanish")


_PARTS = {"latency": _latency, "memory": _memory, "overload": _overload}


def _report(args: argparse.Namespace, conditions: dict[str, Any], found: report.Found, console: Console) -> None:
    contenders = "LiteLLM absent" if "LiteLLM" in found.absent else f"LiteLLM {litellm.version()}"
    lines = [
        f"`{conditions['command']}`",
        machine.line(conditions),
        f"uvicorn with uvloop and httptools, one process each, loopback; {contenders}; seed {args.seed}",
        *(f"WARNING: {text}" for text in machine.warnings(conditions)),
    ]
    report.show(console, found)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, style="yellow" if line.startswith("WARNING") else "")
    if args.json is not None:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result = {"conditions": conditions, "options": options, "lines": lines, **report.data(found)}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown is not None:
        args.markdown.write_text(report.markdown(found, lines))
