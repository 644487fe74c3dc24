"""`thriftree bench vision`: right answers on the model that knows the questions, time on a larger random one."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module

#: part -> its module, and its flags where all parts run
PARTS: dict[str, tuple[str, list[str]]] = {"quality": ("main", []), "time": ("timing", ["--rounds", "3"])}


def main(argv: list[str]) -> int:
    """Without flags all parts in their short forms; flags are those of one part, of quality unless it is named."""
    if not argv:
        return max(_apart(*part) for part in PARTS.values())
    which = argparse.ArgumentParser(prog="thriftree bench vision", add_help=False, allow_abbrev=False)
    which.add_argument("--only", choices=PARTS, default="quality")
    try:
        chosen, rest = which.parse_known_args(argv)
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    return int(import_module(f"thriftree.benchmarks.vision.{PARTS[chosen.only][0]}").main(rest))


def _apart(module: str, flags: list[str]) -> int:
    """In a process of its own: each has an engine inside, and that stays until the end."""
    return subprocess.call([sys.executable, "-m", f"thriftree.benchmarks.vision.{module}", *flags])
