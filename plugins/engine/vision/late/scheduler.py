"""vLLM's scheduler (``--scheduler-cls``) that tells clients how many of their visual tokens the late layers had."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY
from thriftree.plugins.engine.vision.late.fate import Fate, fate_of
from thriftree.plugins.engine.vision.options import VisionOptions


class LateScheduler(Scheduler):
    """It goes by what the worker goes by: which rows of a prompt came in its first step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layer = VisionOptions.of(self.vllm_config.additional_config or {}).late_layer
        self._fates: dict[str, Fate | None] = {}
        self._told: set[str] = set()

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = super().schedule(*args, **kwargs)
        for name, scheduled in output.num_scheduled_tokens.items():
            request = self.requests[name]
            if name not in self._fates:
                fate = fate_of(request.sampling_params, request.num_prompt_tokens, request.mm_features)
                self._fates[name] = fate
                if fate is not None and fate.stays is None:
                    fate.decide(request.num_computed_tokens - scheduled, scheduled)  # they count as computed by now
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        fates = {name: self._fates.get(name) for name in scheduler_output.num_scheduled_tokens}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            for output in batch.outputs:
                fate, name = fates.get(output.request_id), output.request_id
                # With the first output; and with the last, which is all that a client sees who does not stream.
                if fate is not None and (name not in self._told or output.finish_reason is not None):
                    self._told.add(name)
                    output.kv_transfer_params = {EXTRA_ARGS_KEY: self._counts(fate)}
        for name in fates.keys() - self.requests.keys():
            self._told.discard(name)
        return outputs

    def _counts(self, fate: Fate) -> dict[str, Any]:
        counts = {"layer": self._layer, "method": fate.late.method, "seen": len(fate.visual), "kept": fate.stays}
        return {"late": counts}

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._free_request(request, *args, **kwargs)
        finally:
            self._fates.pop(request.request_id, None)
            self._told.discard(request.request_id)
