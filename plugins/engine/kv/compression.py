"""KV compression of one engine: its terms, how its layers are grouped, what its methods need of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.model_executor.models.utils import extract_layer_index

from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.plan import Plan, Tier, plan_of
from thriftree.plugins.engine.kv.support import terms_of
from thriftree.plugins.kv_cache.request import Terms
from thriftree.plugins.kv_cache.rows import Rope


@dataclass
class Compression:
    """The same in the scheduler's process and in every worker."""

    terms: Terms

    @classmethod
    def of(cls, vllm_config: Any) -> Compression:
        return cls(terms_of(vllm_config))

    def plan(self, params: Any, prompt: int) -> Plan | None:
        """See `plan_of`."""
        return plan_of(params, prompt, self.terms)

    def tiers(self, kv_cache_config: Any) -> list[Tier]:
        """One per KV cache group."""
        specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        return [Tier(block=spec.block_size, heads=spec.num_kv_heads) for spec in specs]

    def groups(self, kv_cache_config: Any, layers: Mapping[str, Any]) -> list[GroupLayers]:
        """The layers of each KV cache group, by name -> attention layer."""
        found = []
        for group, tier in zip(kv_cache_config.kv_cache_groups, self.tiers(kv_cache_config), strict=True):
            indices = [extract_layer_index(name) for name in group.layer_names]
            found.append(GroupLayers(group.layer_names, [layers[name] for name in group.layer_names], indices, tier))
        return found

    def rope(self, model: Any) -> Rope | None:
        """The rotation of a model that has a plain one, the same in all layers."""
        for module in model.modules():
            if hasattr(module, "_compute_inv_freq") and hasattr(module, "is_neox_style"):
                return Rope(module._compute_inv_freq(module.base).float(), not module.is_neox_style)
        return None
