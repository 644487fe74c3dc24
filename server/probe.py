"""`thriftree probe heads`: a head file for a model, which the razor methods of the KV cache need."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thriftree.plugins.kv_cache.heads import HeadFile


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if args.out is not None and not args.out.resolve().parent.is_dir():
        print(
            f"thriftree probe heads: no folder {args.out.resolve().parent} to write {args.out.name} in", file=sys.stderr
        )
        return 2
    from thriftree.plugins.kv_cache.probe import probe
    from thriftree.zoo import smollm2
    from thriftree.zoo.cache import ZooError

    try:
        found = probe(args.model or str(smollm2.ensure()), args.tokens, args.repeats, args.seed)
    except (ValueError, OSError, ZooError) as error:
        print(f"thriftree probe heads: {error}", file=sys.stderr)
        return 1
    if args.out is None:
        print(found.dump(), end="")
    else:
        args.out.write_text(found.dump(), encoding="utf-8")
    for line in _summary(found):
        print(line, file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thriftree probe", description="What a model's parts are for.")
    what = parser.add_subparsers(dest="what", required=True)
    heads = what.add_parser("heads", help=__doc__, description=__doc__)
    heads.add_argument("model", nargs="?", metavar="MODEL", help="a folder or a hub id (default: the default model)")
    heads.add_argument("--out", type=Path, metavar="FILE", help="the head file (default: standard output)")
    heads.add_argument("--tokens", type=int, default=500, help="random tokens that are repeated (default: 500)")
    heads.add_argument("--repeats", type=int, default=4, help="how often (default: 4)")
    heads.add_argument("--seed", type=int, default=0)
    return parser


def _summary(found: HeadFile) -> list[str]:
    """The heads that the default shares keep, for people."""
    mark = found.fingerprint
    lines = [f"{found.model}: {mark.layers} layers of {mark.kv_heads} KV heads; retrieval heads, the default shares:"]
    for layer, head in found.ranked():
        scores = f"induction {found.induction[layer][head]:.2f}, echo {found.echo[layer][head]:.2f}"
        lines.append(f"  layer {layer}, head {head}: {scores}")
    return lines
