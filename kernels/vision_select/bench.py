"""Choices among an image's rows and readings of its tower against plain torch: in ``thriftree bench kernels``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from thriftree.kernels import vision_scores
from thriftree.kernels.vision_select import greedy_dpp, max_min

#: What, plain torch, ours.
Row = tuple[str, Callable[[], object], Callable[[], object]]
Turns = Callable[..., list[float]]
DIM = 4096  # of a row of a 7B model


def plain_max_min(unit: Tensor, k: int) -> Tensor:
    """The whole matrix of distances, then one pick after the other."""
    apart = 1 - unit @ unit.T
    pick = int(apart.clone().fill_diagonal_(torch.inf).amin(1).argmax())
    nearest, picks = apart[pick].clone(), [pick]
    nearest[pick] = -1
    while len(picks) < k:
        picks.append(int(nearest.argmax()))
        torch.minimum(nearest, apart[picks[-1]], out=nearest)
        nearest[picks[-1]] = -1
    return torch.tensor(picks)


def plain_dpp(unit: Tensor, k: int) -> Tensor:
    """The whole matrix, then incremental Cholesky."""
    between = unit @ unit.T
    left, columns, picks = between.diagonal().clone(), torch.zeros(k, len(unit)), []
    for step in range(k):
        picks.append(int(left.argmax()))
        new = (between[picks[-1]] - columns[:step, picks[-1]] @ columns[:step]) / left[picks[-1]].sqrt()
        columns[step] = new
        left -= new * new
        left[picks[-1]] = -torch.inf
    return torch.tensor(picks)


def eager_received(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The whole attention, ``[H, S, S]``."""
    return torch.softmax(q.transpose(0, 1) @ k.permute(1, 2, 0) * scale, dim=-1).mean((0, 1))


def rows() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    for count, k in ((576, 144), (2880, 720)):
        unit = torch.nn.functional.normalize(torch.randn(count, DIM, generator=generator), dim=-1)
        yield f"max-min, {k} of {count}", partial(plain_max_min, unit, k), partial(max_min, unit, k)
        yield f"DPP, {k} of {count}", partial(plain_dpp, unit, k), partial(greedy_dpp, unit, None, k)
    for what, count, heads, dim in (("CLIP-L", 577, 16, 64), ("Qwen2.5-VL", 2304, 16, 80)):
        queries, keys = torch.randn(2, count, heads, dim, generator=generator)
        yield (
            f"attention received, {what}, {count} rows",
            partial(eager_received, queries, keys, 0.125),
            partial(vision_scores.read, "received", queries, keys, [0, count], 0.125),
        )


def report(args: argparse.Namespace, take_turns: Turns, flush: Tensor) -> None:
    """Print the table. float32, rows of 4096 channels."""
    print(f"\nvisual tokens: {torch.get_num_threads()} threads; ms, quantile {args.quantile} of {args.rounds} rounds")
    print("| what | plain torch | ours | ratio |\n|---|---|---|---|")
    for what, slow, fast in rows():
        old, new = take_turns((slow, fast), args.rounds, flush, args.quantile)
        print(f"| {what} | {old:.1f} | {new:.1f} | {new / old:.2f} |", flush=True)
