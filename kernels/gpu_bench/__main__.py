"""The Triton kernels beside torch on a CUDA device, in turns in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from thriftree.kernels.gpu_bench import cached_rows, images, trees
from thriftree.kernels.gpu_bench.clock import Row, turns

#: Of each part: what it is beside, and its rows.
PARTS: dict[str, tuple[str, Callable[[], Iterator[Row]]]] = {
    "choices": ("visual tokens chosen; torch: the reference, which waits for every pick", images.choices),
    "readings": ("attention read off a tower's layer; torch: the whole attention matrix", images.readings),
    "trees": ("tree attention, 32/8 heads x 128; torch: SDPA with a mask, keys already gathered", trees.steps),
    "rows": ("cached rows, 32/8 heads x 128; torch: the reference", cached_rows.every),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("thriftree bench kernels-gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=1.0, help="for a line of a table (3 to 100 rounds)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("thriftree bench kernels-gpu: torch sees no CUDA device", file=sys.stderr)
        return 1
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    conditions(args.seconds)
    tower = encoder(args.seconds, flush) if {"choices", "readings"} & set(args.only) else {}
    for name in args.only:
        report(*PARTS[name], args.seconds, flush, tower)
    return 0


def conditions(seconds: float) -> None:
    import triton

    card = torch.cuda.get_device_name()
    print(f"{card}; torch {torch.__version__}, triton {triton.__version__}, Python {sys.version.split()[0]}")
    print(f"ms, medians of 3 to 100 rounds in {seconds:g} s a line, kernel and torch in turns, L2 flushed before each")
    print("GPU: between events, launches queued before. Wall: from an idle GPU to the result, launches included")


def encoder(seconds: float, flush: Tensor) -> dict[int, float]:
    """Print the tower's times. GPU milliseconds for so many tiles."""
    model = images.tower()
    if model is None:
        print("\nno transformers here: no tower to compare with")
        return {}
    print("\n## CLIP ViT-L/14-336, random weights, bfloat16, transformers\n| tiles | GPU | wall |\n|---|---|---|")
    found = {}
    for tiles in (1, 5, 8, 40):
        (times,) = turns([images.encode(model, tiles)], seconds, flush, hide_ms=40.0)
        found[tiles] = times.gpu
        print(f"| {tiles} | {times.gpu:.3f} | {times.wall:.3f} |", flush=True)
    return found


def report(
    title: str, rows: Callable[[], Iterator[Row]], seconds: float, flush: Tensor, tower: dict[int, float]
) -> None:
    """Print one table."""
    print(f"\n## {title}")
    print("| what | kernel GPU | torch GPU | kernel wall | torch wall | rounds | result | of the tower |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows():
        agreement = row.agreement()
        new, old = turns([row.kernel, row.torch], seconds, flush)
        share = f"{new.gpu / tower[row.tiles]:.1%}" if row.tiles in tower else ""
        times = f"{new.gpu:.3f} | {old.gpu:.3f} | {new.wall:.3f} | {old.wall:.3f} | {new.rounds}"
        print(f"| {row.what} | {times} | {agreement} | {share} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
