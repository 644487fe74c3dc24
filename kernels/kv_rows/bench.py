"""Cached rows: the kernels against plain torch, the second table of ``thriftree bench kernels``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch

from thriftree.kernels import kv_rows
from thriftree.kernels.kv_rows import problem, reference

#: What, layers, torch, the kernel.
Row = tuple[str, int, Callable[[], object], Callable[[], object]]
MOVED = 32
Turns = Callable[..., list[float]]


def caches(args: argparse.Namespace, rows: int, dtype: torch.dtype) -> Iterator[Row]:
    """All layers: what a compression event reads, and what it moves."""
    p = problem.make(
        [rows] * args.kv_heads, layers=args.layers, kv_heads=1, dim=args.dim, block=args.block, dtype=dtype
    )
    for name, halves, keys in (("keys", p.key_caches, True), ("values", p.value_caches, False)):

        def slow(halves: list[torch.Tensor] = halves, keys: bool = keys) -> None:
            for cache in halves:
                reference.read(cache, p.table, rows, keys=keys, isa=p.isa)

        def fast(halves: list[torch.Tensor] = halves, keys: bool = keys) -> None:
            for cache in halves:
                kv_rows.read(cache, p.table, rows, keys=keys, isa=p.isa)

        yield f"read {name} of {rows} rows", args.layers, slow, fast
    step, mover = event(p.table, args, rows), kv_rows.Mover(p.key_caches, p.value_caches, p.isa)
    yield (
        f"move {MOVED} of {rows} rows per head",
        args.layers,
        lambda: reference.move(p.key_caches, p.value_caches, *step, isa=p.isa),
        lambda: mover(*step),
    )


def event(table: torch.Tensor, args: argparse.Namespace, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first rows of each head go to places among the others, in each layer to other ones."""
    generator, parts = torch.Generator().manual_seed(0), []
    for _ in range(args.layers):
        places = [torch.randperm(rows - MOVED, generator=generator)[:MOVED] + MOVED for _ in range(args.kv_heads)]
        parts.append(kv_rows.cells(table, torch.stack(places), args.block).flatten())
    first = kv_rows.cells(table, torch.arange(MOVED).expand(args.kv_heads, MOVED), args.block).flatten()
    offsets = torch.arange(args.layers + 1) * len(first)
    return first.repeat(args.layers), torch.cat(parts), offsets


def windows(args: argparse.Namespace, queries: int, rows: int, dtype: torch.dtype) -> Iterator[Row]:
    """One layer: an observation window, or the queries of a whole chunk."""
    shape = {"heads": args.kv_heads, "group": args.heads // args.kv_heads, "dim": args.dim}
    p = problem.window(queries, rows, **shape, dtype=dtype)
    p.pos, p.q_pos = torch.arange(rows).expand(args.kv_heads, rows), torch.arange(rows - queries, rows)
    p.k = torch.randn(p.k.shape).to(dtype)
    name = f"column sums of {queries} queries, {rows} rows"
    yield name, 1, lambda: reference.column_sums(*p.step), lambda: kv_rows.column_sums(*p.step)


def report(args: argparse.Namespace, take_turns: Turns, types: dict[str, torch.dtype], flush: torch.Tensor) -> None:
    """Print the table."""
    print(f"\ncached rows: {args.heads}/{args.kv_heads} heads x {args.dim}, block {args.block}, ", end="")
    print(f"{torch.get_num_threads()} threads; ms, quantile {args.quantile} of {args.rounds} rounds")
    print(f"| dtype | what | layers | torch | {kv_rows.backend()} | ratio |\n|---|---|---|---|---|---|")
    for name in args.dtype:
        dtype = types[name]
        every = [case for rows in (512, 2048) for case in caches(args, rows, dtype)]
        every += [case for size in ((32, 1024), (512, 1024)) for case in windows(args, *size, dtype)]
        for what, layers, slow, fast in every:
            old, new = take_turns((slow, fast), args.rounds, flush, args.quantile)
            print(f"| {name} | {what} | {layers} | {old:.2f} | {new:.2f} | {new / old:.2f} |", flush=True)
