"""How vLLM groups layers whose windows differ: by a cache spec that says which tier a layer is in."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry


@dataclass(frozen=True, kw_only=True)
class TierSpec(FullAttentionSpec):
    """Full attention, of a layer in tier `tier` with at most `full` retrieval heads."""

    tier: int = 0
    full: int = 0
    max_tokens: int | None = None  # rows that a head of a request may hold while it is computed; retrieval heads: all

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        ours = {(spec.tier, spec.full, spec.max_tokens) for spec in specs if isinstance(spec, TierSpec)}
        if len(ours) != 1 or not all(isinstance(spec, TierSpec) for spec in specs):
            raise AssertionError("layers of different tiers have windows of their own")
        tier, full, most = ours.pop()
        return replace(super().merge(specs), tier=tier, full=full, max_tokens=most)

    @classmethod
    def is_uniform_with_collection(cls, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        kinds = {(getattr(s, "tier", None), getattr(s, "full", None)) for s in kv_cache_specs.values()}
        return len(kinds) == 1 and super().is_uniform_with_collection(kv_cache_specs)

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        whole = super().max_memory_usage_bytes(vllm_config)
        if self.max_tokens is None:
            return whole
        page, heads = self.page_size_bytes, self.num_kv_heads
        kept = -(-self.max_tokens // self.block_size)
        pages = -(-(self.full * (whole // page) + (heads - self.full) * kept) // heads) + 2 * bool(self.full)
        return min(whole, pages * page)


def cap(tokens: int, chunk: int, block: int) -> int:
    """Rows that a head holds at most which keeps `tokens`, while steps add `chunk` to it: whole blocks.

    A window is a block wider just before it moves on, and does not end where a block does.
    """
    return -(-(tokens + chunk + 2 * (block - 1)) // block) * block


def register() -> None:
    """Before any process unpickles a spec or asks for its manager. Safe to call twice."""
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(TierSpec, FullAttentionManager, uniform_type_base_spec=TierSpec)


def tiered(spec: FullAttentionSpec, tier: int, full: int, max_tokens: int | None) -> TierSpec:
    """The same layer with its tier."""
    common = {field.name: getattr(spec, field.name) for field in fields(FullAttentionSpec)}
    return TierSpec(**common, tier=tier, full=full, max_tokens=max_tokens)
