"""Ancestor-mask attention on vLLM's CPU back end: one subclass each of back end, metadata builder and implementation.

A step without drafts is the stock op, untouched. In a step with trees the tree rows (and plain decode rows) go through
`thriftree.kernels.tree_attention`, prompt rows through the stock op with scheduler metadata of their own. Where a
request's cache is compressed, both see its table from its window's start (`kv.step_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from thriftree.kernels.tree_attention import Plan, layout, prepare
from thriftree.kernels.tree_attention.commit import Committer
from thriftree.plugins.engine.cpu_cache import halves
from thriftree.plugins.engine.kv.ragged_step import RaggedStep
from thriftree.plugins.engine.kv.step_rows import StepRows
from thriftree.plugins.engine.step import TreeStep


@dataclass
class TreeMetadata(CPUAttentionMetadata):
    """Stock metadata of the rows that the stock op computes, and what computes the others."""

    plan: Plan | None = None
    stock_rows: Tensor | None = None  # step rows that go through the stock op beside the others; None: no such rows
    ragged: RaggedStep | None = None  # requests whose heads differ in length
    node_rows: Tensor | None = None  # step rows of the draft nodes: their keys and values wait for the walk
    kv: StepRows | None = None  # what compression wants of this step


class TreeBackend(CPUAttentionBackend):
    """Stock CPU attention that also reads trees."""

    @staticmethod
    def get_impl_cls() -> type[TreeImpl]:
        return TreeImpl

    @staticmethod
    def get_builder_cls() -> type[TreeMetadataBuilder]:
        return TreeMetadataBuilder


class TreeMetadataBuilder(CPUAttentionMetadataBuilder):
    """The runner sets `step` and `kv` before it builds a step's metadata (None: no drafts; nothing compressed)."""

    step: TreeStep | None = None
    kv: StepRows | None = None
    group = 0  # number of the KV cache group, as `kv` counts them

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layout.check(self.isa, self.dtype, self.head_dim, self.block_size, self.kv_cache_dtype)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        step, kv = self.step, self.kv
        if step is None and kv is None:
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        common = common_attn_metadata if kv is None else kv.shifted(common_attn_metadata, self.group, self.block_size)
        apart = np.zeros(common.num_reqs, dtype=bool) if kv is None else kv.apart[self.group]
        if step is None and not apart.any():
            return _ours(super().build(common_prefix_len, common, fast_build), kv)
        part = self._stock_part(step, common, apart)
        if part is None:
            stock, rows = _without_rows(common), None
        else:
            only, rows = part
            stock = super().build(common_prefix_len, only, fast_build)
        metadata = _ours(stock, kv)
        # What the runner and the cache update read is the whole step's.
        metadata.num_actual_tokens, metadata.slot_mapping = common.num_actual_tokens, common.slot_mapping
        metadata.stock_rows = rows
        metadata.ragged = None if kv is None else kv.ragged[self.group]
        if step is not None:
            metadata.plan = self._plan(step, common, apart, 0 if kv is None else kv.starts[self.group])
            metadata.node_rows = torch.from_numpy(step.node_rows)
        return metadata

    def _plan(self, step: TreeStep, common: CommonAttentionMetadata, apart: Any, starts: Any) -> Plan | None:
        """The tree rows of the requests that are not apart."""
        here = np.nonzero(~apart)[0]
        if not len(here):
            return None
        return prepare(
            block_table=common.block_table_tensor[torch.from_numpy(here)],
            row_start=torch.from_numpy(step.first_row[here]).int(),
            ctx_lens=torch.from_numpy((step.root_position - starts)[here]).int(),
            ancestors=torch.from_numpy(step.ancestors),
            depth=torch.from_numpy(step.depth),
            row_count=torch.from_numpy(step.tree_rows[here]).int(),
            isa=self.isa,
        )

    def _stock_part(
        self, step: TreeStep | None, common: CommonAttentionMetadata, apart: Any
    ) -> tuple[CommonAttentionMetadata, Tensor] | None:
        """The rows before the roots, or without trees all rows, as a step of their own; not of the requests apart."""
        bounds = common.query_start_loc_cpu[: common.num_reqs + 1].long()
        starts, ends = bounds[:-1], bounds[1:] if step is None else torch.from_numpy(step.first_row)
        after = (bounds[1:] - ends).to(common.seq_lens.dtype)  # rows that are not in this part
        chosen = (ends > starts) & ~torch.from_numpy(apart)
        if not bool(chosen.any()):
            return None
        counts, starts = (ends - starts)[chosen], starts[chosen]
        begin = torch.zeros(len(counts) + 1, dtype=torch.int32)
        torch.cumsum(counts, 0, out=begin[1:])
        rows = torch.cat([torch.arange(int(s), int(s + n)) for s, n in zip(starts, counts, strict=True)])
        seq_lens = (common.seq_lens - after)[chosen]
        part = replace(
            common,
            num_reqs=len(counts),
            num_actual_tokens=len(rows),
            max_query_len=int(counts.max()),
            max_seq_len=int(seq_lens.max()),
            query_start_loc=begin,
            query_start_loc_cpu=begin,
            seq_lens=seq_lens,
            block_table_tensor=common.block_table_tensor[chosen],
        )
        return part, rows


def _ours(stock: CPUAttentionMetadata, kv: StepRows | None) -> TreeMetadata:
    return TreeMetadata(**{f.name: getattr(stock, f.name) for f in fields(CPUAttentionMetadata)}, kv=kv)


def _without_rows(common: CommonAttentionMetadata) -> CPUAttentionMetadata:
    return CPUAttentionMetadata(
        num_actual_tokens=common.num_actual_tokens,
        max_query_len=common.max_query_len,
        query_start_loc=common.query_start_loc,
        max_seq_len=common.max_seq_len,
        seq_lens=common.seq_lens,
        block_table=common.block_table_tensor,
        slot_mapping=common.slot_mapping,
        scheduler_metadata=None,
    )


class TreeImpl(CPUAttentionBackendImpl):
    """Keeps, per layer, the step's draft keys and values until the walk says which of them stay."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stash: tuple[Tensor, Tensor] | None = None

    def forward(  # type: ignore[override]
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(attn_metadata, TreeMetadata):
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
        ours = attn_metadata
        if ours.plan is None and ours.ragged is None:
            super().forward(layer, query, key, value, kv_cache, ours, output, output_scale, output_block_scale)
        else:
            self._by_parts(layer, query, key, value, kv_cache, ours, output)
        if ours.kv is not None:
            ours.kv.after_attention(layer.layer_name, query)
        return output

    def _by_parts(
        self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, ours: TreeMetadata, out: Tensor
    ) -> None:
        rows = ours.stock_rows
        if rows is not None:
            part = torch.empty((len(rows), *out.shape[1:]), dtype=out.dtype)
            alone = replace(ours, plan=None, ragged=None, kv=None, num_actual_tokens=len(rows))
            super().forward(layer, query[rows], key[rows], value[rows], kv_cache, alone, part)
            out[rows] = part
        caches = halves(kv_cache)
        options = {
            "sliding_window": self.sliding_window,
            "softcap": self.logits_soft_cap,
            "sinks": self.sinks,
            "alibi": self.alibi_slopes,
        }
        if ours.plan is not None:
            ours.plan.run(query, key, value, *caches, out, self.scale, **options)
        if ours.ragged is not None:
            ours.ragged.run(layer.layer_name, query, key, value, *caches, out, self.scale, self.logits_soft_cap)
        if ours.node_rows is not None:
            # Copies: compiled graphs reuse these buffers as soon as attention is done.
            self.stash = (key[ours.node_rows], value[ours.node_rows])


class GroupCommit:
    """The layers of one KV cache group: their accepted drafts go to the cache in one call."""

    def __init__(self, layers: Sequence[Any]) -> None:
        owners = [layer for layer in layers if layer.kv_sharing_target_layer_name is None]
        self._impls: list[TreeImpl] = [layer.impl for layer in owners]
        caches = [halves(layer.kv_cache) for layer in owners]
        self._commit = Committer([key for key, _ in caches], [value for _, value in caches], owners[0].isa)

    def __call__(self, nodes: Tensor, slots: Tensor) -> None:
        """Write the stashed keys and values of `nodes` (counted over the step's draft nodes) to their `slots`."""
        stashes = [impl.stash for impl in self._impls if impl.stash is not None]
        self._commit([key for key, _ in stashes], [value for _, value in stashes], nodes, slots)
