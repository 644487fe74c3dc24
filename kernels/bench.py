"""Tree attention against vLLM's own CPU op, the rest against torch: ``python -m thriftree.kernels.bench``.

Tree and op attend the same rows over the same context in the same run, taking turns: the op sees them as a causal
chain in its cache, the kernel as a tree outside of it. Every layer has a cache of its own, and between turns
the processor's caches are flushed, as the weights do in an engine. Medians over the rounds; a lower
`--quantile` finds the undisturbed rounds of a busy machine.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thriftree.kernels import problem
from thriftree.kernels.kv_rows import bench as kv_rows
from thriftree.kernels.tree_attention import backend, prepare
from thriftree.kernels.vision_select import bench as vision

Layers = list[problem.Problem]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def stock(layers: Layers, rows: int, ctx: int, isa: str = "vec") -> Callable[[], None]:
    """All layers through the op, the rows as the last tokens of a sequence of ``ctx + rows``."""
    from vllm import _custom_ops as ops

    first = layers[0]
    heads, kv_heads, dim = first.query.shape[1], first.key.shape[1], first.query.shape[2]
    block = first.key_cache.shape[2]
    blocks = -(-(ctx + rows) // block)
    table = torch.arange(blocks, dtype=torch.int32)[None]
    starts, lens = torch.tensor([0, rows], dtype=torch.int32), torch.tensor([ctx + rows], dtype=torch.int32)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        1, heads, kv_heads, dim, lens, first.query.dtype, starts, True, -1, isa, True
    )
    pairs = []
    for layer in layers:
        cache = torch.randn(blocks, kv_heads, 2 * block, dim).to(layer.query.dtype)
        pairs.append((layer.query, torch.empty_like(layer.query), *cache.chunk(2, dim=2)))

    def run() -> None:
        for query, out, key_cache, value_cache in pairs:
            ops.cpu_attention_with_kv_cache(
                query, key_cache, value_cache, out, starts, lens, first.scale, True, None, -1, table, 0.0,
                metadata, None,
            )  # fmt: skip

    return run


def ours(layers: Layers) -> Callable[[], None]:
    """All layers through one plan; building the plan is part of the step."""
    outs = [torch.empty_like(layer.query) for layer in layers]

    def run() -> None:
        plan = prepare(*layers[0].step)
        for layer, out in zip(layers, outs, strict=True):
            plan.run(*layer.layer, out, layer.scale)

    return run


def take_turns(runs: Sequence[Callable[[], None]], rounds: int, flush: Tensor, quantile: float = 0.5) -> list[float]:
    """Milliseconds of each: this quantile over the rounds."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        for i in range(len(runs)):
            which = (i + turn) % len(runs)
            flush.sum()
            start = time.perf_counter()
            runs[which]()
            times[which].append((time.perf_counter() - start) * 1e3)
    return [sorted(t)[round(quantile * (rounds - 1))] for t in times]


def make_layers(args: argparse.Namespace, rows: int, ctx: int, dtype: torch.dtype) -> Layers:
    tree = problem.random_parents(rows, random.Random(0))
    shape = {"heads": args.heads, "kv_heads": args.kv_heads, "dim": args.dim, "block": args.block}
    return [problem.make([tree], [ctx], **shape, dtype=dtype, seed=layer) for layer in range(args.layers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 9, 17, 33])
    parser.add_argument("--ctx", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quantile", type=float, default=0.5)
    parser.add_argument("--only", choices=("tree", "rows", "vision"), help="one of the tables")
    args = parser.parse_args()
    flush = torch.zeros(24 << 20)
    if args.only in (None, "tree"):
        trees(args, flush)
    if args.only in (None, "rows"):
        kv_rows.report(args, take_turns, DTYPES, flush)
    if args.only in (None, "vision"):
        vision.report(args, take_turns, flush)


def trees(args: argparse.Namespace, flush: Tensor) -> None:
    """Print the table of tree attention."""
    print(f"{args.layers} layers of {args.heads}/{args.kv_heads} heads x {args.dim}, block {args.block}, ", end="")
    print(f"{torch.get_num_threads()} threads, backend {backend()}; ms for all layers, ", end="")
    print(f"quantile {args.quantile} of {args.rounds} rounds")
    print("| dtype | ctx | rows | stock | tree | ratio |\n|---|---|---|---|---|---|")
    for dtype in args.dtype:
        for ctx in args.ctx:
            for rows in args.rows:
                layers = make_layers(args, rows, ctx, DTYPES[dtype])
                old, new = take_turns((stock(layers, rows, ctx), ours(layers)), args.rounds, flush, args.quantile)
                print(f"| {dtype} | {ctx} | {rows} | {old:.2f} | {new:.2f} | {new / old:.2f} |", flush=True)


if __name__ == "__main__":
    main()
