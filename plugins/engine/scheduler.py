"""vLLM's scheduler with grammar-pruned trees and per-request counters (``--scheduler-cls``)."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched import scheduler
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY
from thriftree.plugins.engine.grammar import TreeGrammar, prune
from thriftree.plugins.engine.kv.compression import Compression
from thriftree.plugins.engine.kv.manager import CompressingKVCacheManager
from thriftree.plugins.engine.seam import replaced
from thriftree.plugins.engine.tree_tokens import TreeTokens


class TreeScheduler(Scheduler):
    """Drafts arrive as trees, leave pruned by the grammar; every output carries the counters of its request, and blocks
    that compression gives up go back to the pool."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with replaced(scheduler, "KVCacheManager", CompressingKVCacheManager):
            super().__init__(*args, **kwargs)
        assert isinstance(self.kv_cache_manager, CompressingKVCacheManager)
        compression = Compression.of(self.vllm_config)
        tiers = compression.tiers(self.kv_cache_config)
        self.kv_cache_manager.compress(compression.terms, tiers, self.scheduler_config.max_num_batched_tokens)
        self._manager = self.kv_cache_manager
        self._kv_told: dict[str, int] = {}  # request -> blocks freed, as its client knows
        self._over: list[str] = []  # finished requests, whose counts are still to be told
        if self.spec_decode_metrics_level == "none":
            # Counted for `usage.thrift`; the client side strips it where the operator did not ask for it.
            self.spec_decode_metrics_level = "summary"

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        for request_id, drafts in zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True):
            request = self.requests.get(request_id)
            if request is None or request.is_finished():
                continue
            if request.is_prefill_chunk:
                request.spec_token_ids = []
            elif request.use_structured_output and isinstance(drafts, TreeTokens):
                grammar = TreeGrammar.of(self.structured_output_manager, request)
                request.spec_token_ids = prune(drafts, grammar) if grammar else TreeTokens()
            else:
                request.spec_token_ids = drafts

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> GrammarOutput | None:
        """One mask per node: what the grammar allows after the path to it."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if not scheduler_output.has_structured_output_requests or not drafts:
            return super().get_grammar_bitmask(scheduler_output)
        manager = self.structured_output_manager
        # The stock pass fills what trees do not change: the mask of every root (drafts are taken out for the call).
        scheduler_output.scheduled_spec_decode_tokens = {}
        try:
            roots = super().get_grammar_bitmask(scheduler_output)
        finally:
            scheduler_output.scheduled_spec_decode_tokens = drafts
        if roots is None:
            return None
        requests = roots.structured_output_request_ids
        nodes = [TreeGrammar.of(manager, self.requests[r]) for r in requests]
        masks = [
            grammar.masks(drafts.get(request, ()), root) if grammar else [root] * (len(drafts.get(request, ())) + 1)
            for request, grammar, root in zip(requests, nodes, roots.grammar_bitmask.copy(), strict=True)
        ]
        return GrammarOutput(requests, TreeGrammar.stack(masks), [len(drafts.get(r, ())) for r in requests])

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        # The counters of requests that finish in this step are gone from `self.requests` afterwards.
        requests = {r: self.requests[r] for r in scheduler_output.num_scheduled_tokens if r in self.requests}
        counters = {name: request.spec_decode_metrics for name, request in requests.items()}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            for output in batch.outputs:
                if output.spec_decode_metrics is None:
                    output.spec_decode_metrics = counters.get(output.request_id)
                self._tell(output, requests.get(output.request_id))
        for name in self._over:
            self._manager.forget(name)
            self._kv_told.pop(name, None)
        self._over.clear()
        return outputs

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        if request.request_id in self.requests and not self._manager.fits(request):
            # It would wait for ever, and all that come after it: its client gets an error in the next step.
            self.grammar_compile_error_reqs.add(request.request_id)

    def _tell(self, output: EngineCoreOutput, request: Request | None) -> None:
        """What became of a compressed request's cache: with its last output, and whenever more blocks were freed."""
        if request is None or output.kv_transfer_params is not None:
            return
        counts = self._manager.counts(request)
        if counts is None:
            return
        name = request.request_id
        if output.finish_reason is not None or counts["blocks"] != self._kv_told.get(name, 0):
            self._kv_told[name] = counts["blocks"]
            output.kv_transfer_params = {EXTRA_ARGS_KEY: counts}

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._free_request(request, *args, **kwargs)
        finally:
            self._over.append(request.request_id)
