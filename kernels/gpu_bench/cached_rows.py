"""Work on cached rows, at the shapes of Llama 3 8B, bfloat16."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from thriftree.kernels import kv_rows
from thriftree.kernels.gpu_bench.clock import Row, apart
from thriftree.kernels.kv_rows import bench, problem, reference

LAYERS, KV_HEADS, GROUP, DIM, BLOCK = 32, 8, 4, 128, 16


def windows() -> Iterator[Row]:
    """One layer's scores: an observation window, or the queries of a chunk."""
    for queries, rows in ((32, 1024), (32, 8192), (512, 8192)):
        p = problem.window(queries, rows, heads=KV_HEADS, group=GROUP, dim=DIM, dtype=torch.bfloat16)
        k = torch.randn(p.k.shape).to(torch.bfloat16).cuda()
        step = (p.q.cuda(), k, p.pos.cuda(), p.q_pos.cuda(), p.scale)
        fast, slow = partial(kv_rows.column_sums, *step), partial(reference.column_sums, *step)
        what = f"scores of {queries} queries, {rows} rows"
        yield Row(what, fast, slow, apart(fast, slow))


def events() -> Iterator[Row]:
    """What a compression event moves in all layers."""
    rows = 512
    p = problem.make(
        [rows] * KV_HEADS, layers=LAYERS, dim=DIM, block=BLOCK, dtype=torch.bfloat16, isa="rows", device="cuda"
    )
    args = argparse.Namespace(layers=LAYERS, kv_heads=KV_HEADS, block=BLOCK)
    step = [part.cuda() for part in bench.event(p.table.cpu(), args, rows)]
    mover = kv_rows.Mover(p.key_caches, p.value_caches)
    slow = partial(reference.move, p.key_caches, p.value_caches, *step, isa="rows")

    def agreement() -> str:
        mover(*step)
        once = p.bits()
        slow()
        return "the same" if all(map(torch.equal, once, p.bits())) else "DIFFERENT"

    yield Row(f"move {bench.MOVED} rows per head, {LAYERS} layers", lambda: mover(*step), slow, agreement)


def decodes() -> Iterator[Row]:
    """One layer's attention over heads of 1 to 2048 rows."""
    for requests in (1, 8):
        lens = torch.randint(1, 2049, (requests, KV_HEADS), generator=torch.Generator().manual_seed(0))
        p = problem.decode(lens.tolist(), group=GROUP, dim=DIM, block=BLOCK, dtype=torch.bfloat16, isa="rows")
        step = [part.cuda() if isinstance(part, Tensor) else part for part in p.step]
        fast, slow = (
            partial(kv_rows.decode_attention, *step, isa="rows"),
            partial(reference.decode_attention, *step, bias=None, isa="rows"),
        )
        what = f"decode of {requests}, up to 2048 rows a head"
        yield Row(what, fast, slow, apart(fast, slow))


def every() -> Iterator[Row]:
    yield from windows()
    yield from events()
    yield from decodes()
