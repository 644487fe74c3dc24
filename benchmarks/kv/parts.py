"""`thriftree bench kv`: quality in plain torch, capacity and cost on vLLM's engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

#: part -> its module, and its flags where all parts run
PARTS: dict[str, tuple[str, list[str]]] = {
    "quality": ("main", []),
    "capacity": ("capacity", ["--requests", "8", "--pool", "2048", "--rows", "stock", "snapkv", "--no-refusal"]),
    "cost": ("cost", ["--batch", "1", "--rounds", "2", "--rows", "snapkv"]),
}


def main(argv: list[str]) -> int:
    """Without flags all parts in their short forms; flags are those of one part, of quality unless it is named."""
    if not argv:
        return max(_run(name, flags) for name, (_, flags) in PARTS.items())
    which = argparse.ArgumentParser(prog="thriftree bench kv", add_help=False, allow_abbrev=False)
    which.add_argument("--only", choices=PARTS, default="quality")
    try:
        chosen, rest = which.parse_known_args(argv)
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    return _run(chosen.only, rest)


def _run(name: str, argv: Sequence[str]) -> int:
    return int(import_module(f"thriftree.benchmarks.kv.{PARTS[name][0]}").main(list(argv)))
