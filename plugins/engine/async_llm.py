"""vLLM's `AsyncLLM` that carries each request's contract to the engine and its counters back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from thriftree.plugins.engine.contract_var import CURRENT, EXTRA_ARGS_KEY, Report, RequestContract
from thriftree.plugins.engine.handover import careful
from thriftree.plugins.engine.register import uses_trees
from thriftree.plugins.engine.vision.support import settings_of
from thriftree.plugins.engine.vision.wish import carry


class ThriftAsyncLLM(AsyncLLM):
    """Reads `contract_var.CURRENT` in the task that adds a request, so every route of vLLM's app takes part."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reports: dict[str, tuple[Report, int]] = {}  # engine request id -> report, drafted so far
        self._kv: dict[str, dict[str, int]] = {}  # engine request id -> what its cache had come to
        self._late: set[str] = set()  # engine requests whose late layers have been counted
        self._trees = uses_trees(self.vllm_config)
        self._show_metrics = self.vllm_config.observability_config.per_request_spec_decode_metrics != "none"
        processor = self.output_processor
        stock_add, stock_process = processor.add_request, processor.process_outputs

        def add_request(request: EngineCoreRequest, prompt: str | None, *args: Any, **kwargs: Any) -> None:
            stock_add(request, prompt, *args, **kwargs)
            self._admit(request)

        def process_outputs(outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any) -> Any:
            self._count(outputs)
            return stock_process(outputs, *args, **kwargs)

        # Every request (each choice of n > 1 too) is registered here before the engine hears of it, and every output
        # comes through here; both are called through this object.
        processor.add_request = add_request
        processor.process_outputs = process_outputs
        carry(self.renderer, settings_of(self.model_config).terms)
        core = self.engine_core
        core.add_request_async = careful(core.add_request_async, lambda name: self.abort(name, internal=True))

    def _admit(self, request: EngineCoreRequest) -> None:
        contract, params = CURRENT.get(), request.sampling_params
        if contract is None or params is None:
            return
        _attach(params, contract)
        contract.report.prompt_tokens = len(request.prompt_token_ids or ())
        self._reports[request.request_id] = (contract.report, 0)

    async def abort(self, request_id: Any, internal: bool = False) -> None:
        await super().abort(request_id, internal)
        for one in self._reports.keys() - self.output_processor.request_states.keys():
            del self._reports[one]
            self._forget(one)

    def _forget(self, name: str) -> None:
        self._kv.pop(name, None)
        self._late.discard(name)

    def _count(self, outputs: list[EngineCoreOutput]) -> None:
        """Each output with tokens is one forward pass of that request; what it holds beyond one token was drafted."""
        for output in outputs:
            metrics = output.spec_decode_metrics
            if metrics is not None and not self._show_metrics:
                output.spec_decode_metrics = None
            counts = _taken(output)
            known = self._reports.get(output.request_id)
            if known is None:
                continue
            report, drafted = known
            if counts is not None and "late" in counts:
                self._count_late(output.request_id, report, counts["late"])
            elif counts is not None:
                self._count_kv(output.request_id, report, counts)
            tokens = len(output.new_token_ids)
            if tokens:
                report.steps += 1
                report.completion_tokens += tokens
                report.accepted += tokens - 1
            if metrics is not None:
                report.drafted += metrics.num_draft_tokens - drafted
                self._reports[output.request_id] = (report, metrics.num_draft_tokens)
            if output.finish_reason is not None:
                del self._reports[output.request_id]
                self._forget(output.request_id)

    def _count_late(self, name: str, report: Report, late: dict[str, Any]) -> None:
        """The engine says it twice: a client that leaves sees the first output only, one that waits the last."""
        if name not in self._late:
            self._late.add(name)
            report.count_late(**late)

    def _count_kv(self, name: str, report: Report, counts: dict[str, int]) -> None:
        """The engine says what a cache has come to so far; the report takes what is new."""
        before = self._kv.get(name, {})
        seen, kept, freed = (counts[part] - before.get(part, 0) for part in ("seen", "kept", "blocks"))
        report.count_kv(seen, kept, seen - kept, freed)
        report.exact = report.exact and not counts["touched"]
        self._kv[name] = counts


def _taken(output: EngineCoreOutput) -> dict[str, Any] | None:
    """Our counts off an output: vLLM's answers show what is left there to their clients."""
    given = output.kv_transfer_params
    if not given or EXTRA_ARGS_KEY not in given:
        return None
    counts: dict[str, Any] = given[EXTRA_ARGS_KEY]
    output.kv_transfer_params = None
    return counts


def _attach(params: SamplingParams, contract: RequestContract) -> None:
    """Put the contract where scheduler and worker see it (what the request's own `vllm_xargs` said gives way)."""
    ours = {name: value for name, value in contract.thrift.items() if name != "vision"}  # that travels with the images
    vision = contract.thrift.get("vision")
    if isinstance(vision, Mapping) and "late" in vision:  # but for this
        ours["late"] = vision["late"]
    params.extra_args = {**(params.extra_args or {}), EXTRA_ARGS_KEY: {**ours, "tenant": contract.tenant}}
