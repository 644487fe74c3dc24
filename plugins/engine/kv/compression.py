"""KV compression of one engine: its terms, how its layers are grouped, what its methods need of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import FullAttentionSpec

from thriftree.plugins.engine.kv import spec as specs
from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.options import KVOptions
from thriftree.plugins.engine.kv.plan import Plan, Tier, plan_of
from thriftree.plugins.engine.kv.request_cache import kept_queries
from thriftree.plugins.engine.kv.side_memory import Layer, SideMemory
from thriftree.plugins.engine.kv.support import retrieval_heads, terms_of
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.request import Terms
from thriftree.plugins.kv_cache.rows import Rope


@dataclass(frozen=True)
class Compression:
    """The same in the scheduler's process and in every worker."""

    terms: Terms
    tier_count: int
    retrieval: tuple[tuple[int, ...], ...] | None  # retrieval heads of each layer, of the whole model
    chunk: int  # most tokens that a step adds to a request
    kv_heads: int = 1  # of a layer, on all ranks together
    ranks: int = 1

    @classmethod
    def of(cls, vllm_config: Any) -> Compression:
        options = KVOptions.of(vllm_config.additional_config or {})
        terms = terms_of(vllm_config)
        heads = retrieval_heads(vllm_config, options) if terms.reason is None else None
        model, ranks = vllm_config.model_config, vllm_config.parallel_config.tensor_parallel_size
        chunk = vllm_config.scheduler_config.max_num_batched_tokens
        return cls(terms, options.tiers, heads, chunk, model.get_total_num_kv_heads(), ranks)

    def plan(self, params: Any, prompt: int) -> Plan | None:
        """See `plan_of`."""
        return plan_of(params, prompt, self.terms)

    def specs(self, found: dict[str, Any]) -> dict[str, Any]:
        """The layers' cache specs, with their tiers where there is more than one kind of layer."""
        if self.terms.reason is not None or (
            self.tier_count == 1 and self.retrieval is None and self.terms.max_tokens is None
        ):
            return found
        specs.register()
        limit = self.terms.max_tokens
        most = None if limit is None else specs.cap(limit, self.chunk, self.terms.block)
        layers = 1 + max(extract_layer_index(name) for name in found)
        made = dict(found)
        for name, spec in found.items():
            if type(spec) is FullAttentionSpec:
                index = extract_layer_index(name)
                full = len(self.retrieval[index]) if self.retrieval is not None else 0
                made[name] = specs.tiered(spec, index * self.tier_count // layers, full, most)
        return made

    def side_memory(self, found: Mapping[str, Any], query_heads: int) -> SideMemory | None:
        """What is held beside the cache of layers with these specs, by requests of the default method; None: nothing.

        Requests whose method looks at more queries hold more: see `request_cache.kept_queries`.
        """
        if self.terms.reason is not None:
            return None
        layers = [
            Layer(one.num_kv_heads, query_heads, one.head_size, one.dtype.itemsize, one.block_size, one.page_size_bytes)
            for one in found.values()
        ]
        sums = any(registry.describe(name).observes for name in registry.names() if name not in self.terms.missing)
        return SideMemory.of(layers, kept_queries(registry.describe(self.terms.method)), sums)

    def tiers(self, kv_cache_config: Any) -> list[Tier]:
        """One per KV cache group."""
        found = []
        for group in kv_cache_config.kv_cache_groups:
            spec = group.kv_cache_spec
            tier, full = getattr(spec, "tier", 0), getattr(spec, "full", 0)
            found.append(Tier(tier, self.tier_count, spec.block_size, spec.num_kv_heads, full))
        return found

    def groups(self, kv_cache_config: Any, layers: Mapping[str, Any]) -> list[GroupLayers]:
        """The layers of each KV cache group, by name -> attention layer."""
        found = []
        first = get_tensor_model_parallel_rank() * self.kv_heads // self.ranks
        for group, tier in zip(kv_cache_config.kv_cache_groups, self.tiers(kv_cache_config), strict=True):
            indices = [extract_layer_index(name) for name in group.layer_names]
            heads = [() if self.retrieval is None else self.retrieval[index] for index in indices]
            mine = [layers[name] for name in group.layer_names]
            found.append(GroupLayers(group.layer_names, mine, indices, tier, heads, first))
        return found

    def rope(self, model: Any) -> Rope | None:
        """The rotation of a model that has a plain one, the same in all layers."""
        for module in model.modules():
            if hasattr(module, "_compute_inv_freq") and hasattr(module, "is_neox_style"):
                return Rope(module._compute_inv_freq(module.base).float(), not module.is_neox_style)
        return None
