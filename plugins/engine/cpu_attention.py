"""Ancestor-mask attention on vLLM's CPU back end: one subclass each of back end, metadata builder and implementation.

A step without drafts is the stock op, untouched. In a step with trees the tree rows (and plain decode rows) go through
`thriftree.kernels.tree_attention`, prompt rows through the stock op with scheduler metadata of their own. Where a
request's cache is compressed, both see its table from its window's start (`kv.step_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

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
from thriftree.plugins.engine.kv.step_rows import StepRows, shifted
from thriftree.plugins.engine.step import TreeStep


@dataclass
class TreeMetadata(CPUAttentionMetadata):
    """Stock metadata of the prompt rows plus the plan of the tree rows."""

    plan: Plan | None = None
    prompt_rows: Tensor | None = None  # step rows that go through the stock op; None: no such rows
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
        skip = None if kv is None else kv.starts[self.group]
        if skip is not None:
            common_attn_metadata = shifted(common_attn_metadata, skip, self.block_size)
        if step is None:
            whole = super().build(common_prefix_len, common_attn_metadata, fast_build)
            return whole if kv is None else _ours(whole, kv)
        if skip is not None:
            step = replace(step, root_position=step.root_position - skip)
        prompt = self._prompt_part(step, common_attn_metadata)
        if prompt is None:
            stock = _without_rows(common_attn_metadata)
            rows = None
        else:
            common, rows = prompt
            stock = super().build(common_prefix_len, common, fast_build)
        plan = prepare(
            block_table=common_attn_metadata.block_table_tensor,
            row_start=torch.from_numpy(step.first_row).int(),
            ctx_lens=torch.from_numpy(step.root_position).int(),
            ancestors=torch.from_numpy(step.ancestors),
            depth=torch.from_numpy(step.depth),
            row_count=torch.from_numpy(step.tree_rows).int(),
            isa=self.isa,
        )
        metadata = _ours(stock, kv)
        # What the runner and the cache update read is the whole step's.
        metadata.num_actual_tokens = common_attn_metadata.num_actual_tokens
        metadata.slot_mapping = common_attn_metadata.slot_mapping
        metadata.plan, metadata.prompt_rows, metadata.node_rows = plan, rows, torch.from_numpy(step.node_rows)
        return metadata

    def _prompt_part(
        self, step: TreeStep, common: CommonAttentionMetadata
    ) -> tuple[CommonAttentionMetadata, Tensor] | None:
        """The rows before the roots, as a step of their own."""
        starts = common.query_start_loc_cpu[: common.num_reqs].long()
        counts = torch.from_numpy(step.first_row) - starts
        chosen = counts > 0
        if not bool(chosen.any()):
            return None
        counts, starts = counts[chosen], starts[chosen]
        begin = torch.zeros(len(counts) + 1, dtype=torch.int32)
        torch.cumsum(counts, 0, out=begin[1:])
        rows = torch.cat([torch.arange(int(s), int(s + n)) for s, n in zip(starts, counts, strict=True)])
        seq_lens = torch.from_numpy(step.root_position)[chosen].int()
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
        if not isinstance(attn_metadata, TreeMetadata) or attn_metadata.plan is None:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
            if isinstance(attn_metadata, TreeMetadata) and attn_metadata.kv is not None:
                attn_metadata.kv.after_attention(layer.layer_name, query)
            return output
        rows = attn_metadata.prompt_rows
        if rows is not None:
            part = torch.empty((len(rows), *output.shape[1:]), dtype=output.dtype)
            prompt = replace(attn_metadata, plan=None, kv=None, num_actual_tokens=len(rows))
            super().forward(layer, query[rows], key[rows], value[rows], kv_cache, prompt, part)
            output[rows] = part
        key_cache, value_cache = halves(kv_cache)
        attn_metadata.plan.run(
            query,
            key,
            value,
            key_cache,
            value_cache,
            output,
            self.scale,
            sliding_window=self.sliding_window,
            softcap=self.logits_soft_cap,
            sinks=self.sinks,
            alibi=self.alibi_slopes,
        )
        # Copies: compiled graphs reuse these buffers as soon as attention is done.
        assert attn_metadata.node_rows is not None
        self.stash = (key[attn_metadata.node_rows], value[attn_metadata.node_rows])
        if attn_metadata.kv is not None:
            attn_metadata.kv.after_attention(layer.layer_name, query)
        return output


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


def halves(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer's cache, as vLLM's CPU ops take them."""
    blocks, kv_heads, block, _ = kv_cache.size()
    key_cache, value_cache = kv_cache.view((blocks, kv_heads, block * 2, -1)).chunk(2, dim=2)
    return key_cache, value_cache
