"""The scheduler's side: blocks outside a compressed request's window go back to the pool, and hits stop before it.

vLLM's full-attention manager stays as it is. What is overridden is its owner, which knows the requests.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request

from thriftree.plugins.engine.kv.plan import Plan, Tier, plan_of
from thriftree.plugins.kv_cache.request import Terms


class CompressingKVCacheManager(KVCacheManager):
    """`compress` must be called before the first request comes."""

    def compress(self, terms: Terms, tiers: list[Tier], chunk: int) -> None:
        """`tiers`: one per KV cache group; `chunk`: most tokens that a step may add to a request."""
        self._terms, self._tiers, self._chunk = terms, tiers, chunk
        self._plans: dict[str, Plan | None] = {}
        self._freed: dict[str, int] = {}  # blocks that went back to the pool early
        self._starts: dict[str, float] = {}  # tokens before the window, the mean over the tiers
        stock = self.coordinator.cache_blocks

        def cache_blocks(request: Request, num_computed_tokens: int) -> None:
            plan = self.plan(request)
            stock(request, num_computed_tokens if plan is None else min(num_computed_tokens, self._shared(plan)))

        self.coordinator.cache_blocks = cache_blocks

    def plan(self, request: Request) -> Plan | None:
        """The request's plan, made once."""
        name = request.request_id
        if name not in self._plans:
            self._plans[name] = plan_of(request.sampling_params, request.num_prompt_tokens, self._terms)
        return self._plans[name]

    def counts(self, request: Request) -> dict[str, Any] | None:
        """What has happened to a compressed request's cache so far; tokens are per layer and head, in the mean."""
        plan = self.plan(request)
        if plan is None:
            return None
        name, seen = request.request_id, request.num_computed_tokens
        dropped = round(self._starts.get(name, 0.0))
        return {"method": plan.name, "seen": seen, "kept": seen - dropped, "blocks": self._freed.get(name, 0),
                "touched": plan.touched(seen - 1, self._tiers)}  # fmt: skip

    def forget(self, name: str) -> None:
        """The request is over."""
        self._plans.pop(name, None)
        self._freed.pop(name, None)
        self._starts.pop(name, None)

    def _shared(self, plan: Plan) -> int:
        """Whole blocks, in tokens."""
        block = self._tiers[0].block
        return plan.publishable(self._tiers) // block * block

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        blocks, hit, boundary = super().get_computed_blocks(request)
        plan = self.plan(request)
        if plan is None or hit <= (most := self._shared(plan)):
            return blocks, hit, boundary
        # What follows is rewritten in place by this request: it must be its own.
        cut = [group[: most // tier.block] for group, tier in zip(blocks.blocks, self._tiers, strict=True)]
        return self.create_kv_cache_blocks(tuple(cut)), most, 0

    def allocate_slots(self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> KVCacheBlocks | None:
        plan = self.plan(request)
        if plan is None:
            return super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        computed = request.num_computed_tokens + kwargs.get("num_new_computed_tokens", 0)
        self._free_outside(request.request_id, plan, max(0, computed - request.num_in_flight_tokens))
        most = self._most_blocks(plan, request.num_tokens)
        if kwargs.get("full_sequence_must_fit") and most < self._most_blocks(None, request.num_tokens):
            # It never holds all of its tokens at once, however long it is.
            kwargs["full_sequence_must_fit"] = False
            if most > self.block_pool.get_num_free_blocks():
                return None
        return super().allocate_slots(request, num_new_tokens, *args, **kwargs)

    def _free_outside(self, name: str, plan: Plan, committed: int) -> None:
        starts = [plan.window(tier).start(committed) for tier in self._tiers]
        self._starts[name] = sum(starts) / len(starts)
        before = self.block_pool.get_num_free_blocks()
        for manager, tier, start in zip(self.coordinator.single_type_managers, self._tiers, starts, strict=True):
            manager._remove_blocks_in_range(name, 0, start // tier.block)
        self._freed[name] = self._freed.get(name, 0) + self.block_pool.get_num_free_blocks() - before

    def fits(self, request: Request) -> bool:
        """Whether the pool has room for all that the request may come to hold, if it were alone."""
        tokens = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        return self._most_blocks(self.plan(request), tokens) < self.block_pool.num_gpu_blocks  # one is the null block

    def _most_blocks(self, plan: Plan | None, tokens: int) -> int:
        """What a request holds at most, on its way to so many tokens."""
        return sum(-(-self._most_rows(plan, tokens, tier) // tier.block) for tier in self._tiers)

    def _most_rows(self, plan: Plan | None, tokens: int, tier: Tier) -> int:
        if plan is None:
            return tokens
        # Before its last chunk, and just before an event.
        rows = tokens - plan.window(tier).start(max(0, tokens - self._chunk)) + tier.block - 1
        return min(tokens, max(rows, plan.prompt + self._chunk) if plan.defer else rows)
