"""Tree attention beside torch's own attention with a mask, at the shapes of Llama 3 8B."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from thriftree.kernels import problem
from thriftree.kernels.gpu_bench.clock import Row, apart
from thriftree.kernels.tree_attention import layout
from thriftree.kernels.tree_attention.reference import unpack
from thriftree.kernels.tree_attention.triton import TritonPlan, columns

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 16
STEPS = [(1, nodes, ctx) for ctx in (512, 2048, 8192) for nodes in (8, 16, 32, 64)] + [(8, 16, 2048), (8, 64, 2048)]


def steps() -> Iterator[Row]:
    """One layer's attention of a step, bfloat16."""
    for requests, nodes, ctx in STEPS:
        tree = problem.random_parents(nodes, random.Random(0))
        p = problem.make(
            [tree] * requests, [ctx] * requests, heads=HEADS, kv_heads=KV_HEADS, dim=DIM, block=BLOCK,
            dtype=torch.bfloat16, device="cuda",
        )  # fmt: skip
        fast, slow = partial(paged, p, columns(p.key_cache).contiguous(), p.output()), gathered(p, nodes, ctx)
        what = f"{requests} x tree of {nodes}, context {ctx}"
        yield Row(what, fast, slow, apart(fast, partial(unfold, slow, p)))


def paged(p: problem.Problem, keys: Tensor, out: Tensor) -> Tensor:
    TritonPlan(*p.step).run(p.query, p.key, p.value, keys, p.value_cache, out, p.scale)
    return out


def gathered(p: problem.Problem, nodes: int, ctx: int) -> partial[Tensor]:
    """Torch's attention over keys and values that already lie together, which the gather is not counted for. The query
    heads of a KV head count as rows, so that no key is read twice: ``[B, kv_heads, group * nodes, dim]``."""
    requests = len(p.ctx_lens)
    past_and_own = []
    for cache, own, keys in ((p.key_cache, p.key, True), (p.value_cache, p.value, False)):
        past = torch.stack([layout.read(cache, table, ctx, keys, "vec") for table in p.block_table])
        past_and_own.append(torch.cat((past, own.unflatten(0, (requests, nodes)).transpose(1, 2)), 2).contiguous())
    all_keys, all_values = past_and_own
    query = p.query.unflatten(0, (requests, nodes)).unflatten(2, (KV_HEADS, -1))
    query = query.permute(0, 2, 3, 1, 4).flatten(2, 3).contiguous()
    tree = unpack(p.ancestors[:nodes], nodes)
    mask = torch.cat((torch.ones(nodes, ctx, dtype=torch.bool, device="cuda"), tree), 1)
    mask = mask.repeat(query.shape[2] // nodes, 1)[None, None]
    return partial(scaled_dot_product_attention, query, all_keys, all_values, attn_mask=mask, scale=p.scale)


def unfold(folded: Callable[[], Tensor], p: problem.Problem) -> Tensor:
    """The answer as the kernel has it: ``[R, heads, dim]``."""
    nodes = len(p.query) // len(p.ctx_lens)
    return folded().unflatten(2, (-1, nodes)).permute(0, 3, 1, 2, 4).reshape(p.query.shape)
