"""vLLM's scheduler with grammar-pruned trees and per-request counters (``--scheduler-cls``)."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from thriftree.plugins.engine.grammar import TreeGrammar, prune
from thriftree.plugins.engine.tree_tokens import TreeTokens


class TreeScheduler(Scheduler):
    """Drafts arrive as trees, leave pruned by the grammar, and every output carries the counters of its request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
        counters = {r: self.requests[r].spec_decode_metrics for r in scheduler_output.num_scheduled_tokens
                    if r in self.requests}  # fmt: skip
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            for output in batch.outputs:
                if output.spec_decode_metrics is None:
                    output.spec_decode_metrics = counters.get(output.request_id)
        return outputs
