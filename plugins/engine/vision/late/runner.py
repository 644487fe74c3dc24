"""Late layers on vLLM's V1 model runner: it knows the requests, and builds their attention metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from thriftree.plugins.engine.vision.late.fate import Fate, fate_of
from thriftree.plugins.engine.vision.late.layers import LateLayers, LateStep
from thriftree.plugins.engine.vision.late.step import LateRows, Part, plan
from thriftree.plugins.engine.vision.options import VisionOptions

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Base
else:
    Base = object


class LateRunnerMixin(Base):
    """Before a V1 runner class. A step in which nobody misses a row is the stock one."""

    _late_step: LateStep | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        options = VisionOptions.of(self.vllm_config.additional_config or {})
        assert options.late_layer is not None
        ranks = self.parallel_config.tensor_parallel_size
        self._late = LateLayers(self.get_model().get_language_model(), options.late_layer, ranks)
        self._fates: dict[str, Fate | None] = {}

    def initialize_attn_backend(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_attn_backend(*args, **kwargs)
        kinds = sum(map(len, self.attn_groups))
        if kinds != 1:
            raise ValueError(f"--vision-late-layer: the model has {kinds} kinds of attention layers, and it knows one")

    def _build_attention_metadata(
        self, *args: Any, num_scheduled_tokens: dict[str, int] | None = None, **kwargs: Any
    ) -> Any:
        built = super()._build_attention_metadata(*args, num_scheduled_tokens=num_scheduled_tokens, **kwargs)
        self._late_step = None  # a dummy run has no requests
        if num_scheduled_tokens is not None:
            rows = plan([self._part(name, num_scheduled_tokens[name]) for name in self.input_batch.req_ids])
            self._late_step = None if rows is None else self._laid_out(rows)
        return built

    def _part(self, name: str, scheduled: int) -> Part:
        state = self.requests[name]
        if name not in self._fates:
            self._fates[name] = fate_of(state.sampling_params, state.num_prompt_tokens, state.mm_features)
        computed = int(self.input_batch.num_computed_tokens_cpu[self.input_batch.req_id_to_index[name]])
        return Part(self._fates[name], computed, scheduled)

    def _laid_out(self, rows: LateRows) -> LateStep:
        table = self.input_batch.block_table[0]
        slots = torch.from_numpy(rows.slots(table.get_numpy_array(), table.block_size)).to(self.device)
        begin = torch.from_numpy(np.concatenate(([0], np.cumsum(rows.counts))).astype(np.int32))
        lengths = torch.from_numpy(rows.lengths.astype(np.int32))
        batch = torch.from_numpy(rows.requests)
        common = CommonAttentionMetadata(
            query_start_loc=begin.to(self.device),
            query_start_loc_cpu=begin,
            seq_lens=lengths.to(self.device),
            seq_lens_cpu_upper_bound=lengths,
            num_reqs=len(rows.requests),
            num_actual_tokens=len(rows.rows),
            max_query_len=int(rows.counts.max()),
            max_seq_len=int(rows.lengths.max()),
            block_table_tensor=table.get_device_tensor(self.input_batch.num_reqs)[batch.to(self.device)],
            slot_mapping=slots,
            causal=True,
        )
        return LateStep(rows, self.attn_groups[0][0].build_metadata(common, 0), slots)

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        step, self._late_step = self._late_step, None
        with self._late.running(step):
            return super()._model_forward(*args, **kwargs)

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)
        self._fates.pop(req_id, None)


class LateCPUModelRunner(LateRunnerMixin, CPUModelRunner):
    """The CPU engine's."""
