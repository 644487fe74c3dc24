"""Compression on vLLM's V1 model runner: a mixin that looks at a step's queries and, after it, lets rows go.

A step's events come after the walk has committed its accepted rows, and before the scheduler, in the next step, gives
the blocks before the new window start to others. Both sides work the start out from the committed length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thriftree.plugins.engine.cpu_attention import TreeMetadataBuilder
from thriftree.plugins.engine.kv.compression import Compression
from thriftree.plugins.engine.kv.groups import GroupLayers
from thriftree.plugins.engine.kv.ragged_step import RaggedRequest, RaggedStep
from thriftree.plugins.engine.kv.request_cache import RequestCache, request_cache
from thriftree.plugins.engine.kv.side_memory import SideMemory
from thriftree.plugins.engine.kv.step_rows import StepRows
from thriftree.plugins.engine.tree_tokens import as_tree

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Base
else:
    Base = object


class CompressingRunnerMixin(Base):
    """Before a V1 runner class, after trees: requests may have compressed caches."""

    _accepted: list[list[int]] | None = None  # accepted draft nodes of each request in this step, set by trees

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compression = Compression.of(self.vllm_config)
        self._caches: dict[str, RequestCache] = {}
        self._groups: list[GroupLayers] = []
        self._scheduled: Any = np.empty(0, dtype=np.int64)
        self._drafts: dict[str, Any] = {}
        self._kv_step: StepRows | None = None

    def get_kv_cache_spec(self) -> dict[str, Any]:
        return self.compression.specs(super().get_kv_cache_spec())

    def side_memory(self) -> SideMemory | None:
        """What compression holds beside the cache; None: this engine does not compress."""
        heads = self.model_config.get_num_attention_heads(self.parallel_config)
        return self.compression.side_memory(self.get_kv_cache_spec(), heads)

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        self._groups = []  # the caches of a profile run are gone by the time that a request comes

    def _layers(self) -> list[GroupLayers]:
        if not self._groups:
            context = self.compilation_config.static_forward_context
            self._groups = self.compression.groups(self.kv_cache_config, context)
        return self._groups

    def _update_states(self, scheduler_output: Any) -> Any:
        cached = scheduler_output.scheduled_cached_reqs
        # A preempted request starts from nothing when it comes back.
        preempted = scheduler_output.preempted_req_ids or ()
        for name in (*scheduler_output.finished_req_ids, *preempted, *cached.resumed_req_ids):
            self._caches.pop(name, None)
        done = super()._update_states(scheduler_output)
        for name in (*(new.req_id for new in scheduler_output.scheduled_new_reqs), *cached.resumed_req_ids):
            state = self.requests[name]
            plan = self.compression.plan(state.sampling_params, state.num_prompt_tokens)
            if plan is not None:
                seed = state.sampling_params.seed or 0
                self._caches[name] = request_cache(plan, self._layers(), self.compression.rope(self.model), seed)
        return done

    def _levels(self, name: str, length: int) -> int:
        cache = self._caches.get(name)
        return self.max_model_len if cache is None else cache.levels(length)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        self._scheduled = num_scheduled_tokens
        self._drafts = scheduler_output.scheduled_spec_decode_tokens
        self._accepted = None
        return super()._prepare_inputs(scheduler_output, num_scheduled_tokens)

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        step = self._step_rows() if self._caches else None
        self._kv_step = step
        for number, groups in enumerate(self.attn_groups):
            for group in groups:
                builder = group.get_metadata_builder(0)
                if isinstance(builder, TreeMetadataBuilder):
                    builder.kv, builder.group = step, number
        return super()._build_attention_metadata(*args, **kwargs)

    def _step_rows(self) -> StepRows | None:
        names = self.input_batch.req_ids
        caches = [self._caches.get(name) for name in names]
        if not any(caches):
            return None
        starts = [
            np.array([0 if cache is None else cache.starts[g] for cache in caches], dtype=np.int64)
            for g in range(len(self._layers()))
        ]
        apart = [
            np.array([cache is not None and cache.apart(g) is not None for cache in caches])
            for g in range(len(self._layers()))
        ]
        step = StepRows(starts, apart)
        step.ragged = [self._ragged(g, caches) if apart[g].any() else None for g in range(len(self._layers()))]
        capture: list[Tensor] = []
        first = 0
        for i, (name, cache) in enumerate(zip(names, caches, strict=True)):
            rows, computed = int(self._scheduled[i]), int(self.input_batch.num_computed_tokens_cpu[i])
            if cache is not None:
                drafts = len(self._drafts.get(name, ()))
                chunk = rows - drafts
                observer = cache.observer(chunk, computed, partial(self._blocks, i, computed + chunk))
                if observer is not None:
                    step.observers.append((slice(first, first + chunk), observer))
                wanted = cache.queries_wanted(chunk, computed, drafts)
                capture.append(torch.arange(first + chunk - wanted, first + rows if wanted else first + chunk))
            first += rows
        chosen = torch.cat(capture)
        step.capture = chosen if len(chosen) else None
        return step

    def _ragged(self, group: int, caches: Sequence[RequestCache | None]) -> RaggedStep:
        requests, first = [], 0
        for i, (name, cache) in enumerate(zip(self.input_batch.req_ids, caches, strict=True)):
            rows, computed = int(self._scheduled[i]), int(self.input_batch.num_computed_tokens_cpu[i])
            mine = None if cache is None else cache.apart(group)
            if mine is not None:
                tree = as_tree(self._drafts.get(name, ()))
                blocks = self._blocks(i, computed, group)
                requests.append(RaggedRequest(mine, blocks, computed, first, rows - len(tree), tree))
            first += rows
        layers = self._layers()[group]
        return RaggedStep(requests, layers.heads, {name: n for n, name in enumerate(layers.names)}, layers.isa)

    def _blocks(self, request: int, length: int, group: int) -> Tensor:
        """Block ids of a request of the batch, for `length` tokens."""
        table = self.input_batch.block_table[group]
        count = -(-length // self._layers()[group].tier.block)
        blocks: Tensor = table.get_cpu_tensor()[request, :count]
        return blocks

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        done = super()._bookkeeping_sync(*args, **kwargs)
        if self._caches and self._kv_step is not None:
            self._after_step(self._kv_step)
        return done

    def _after_step(self, step: StepRows) -> None:
        captured = self._captured(step)
        taken = 0
        for i, name in enumerate(self.input_batch.req_ids):
            cache = self._caches.get(name)
            if cache is None:
                continue
            drafts = len(self._drafts.get(name, ()))
            chunk = int(self._scheduled[i]) - drafts
            path = self._accepted[i] if self._accepted is not None and drafts else []
            computed = int(self.input_batch.num_computed_tokens_cpu[i])
            length = computed + chunk + len(path)
            wanted = cache.queries_wanted(chunk, computed, drafts)
            if wanted and captured is not None:
                rows = [*range(taken, taken + wanted), *(taken + wanted + node for node in path)]
                cache.see(captured[:, rows], computed + chunk - wanted, partial(self._blocks, i, length))
                taken += wanted + drafts
            cache.compact(length, partial(self._blocks, i, length))

    def _captured(self, step: StepRows) -> Tensor | None:
        """``[layers, rows, heads, dim]`` in the order of the model's layers."""
        if not step.captured:
            return None
        order = sorted(
            (index, name) for group in self._layers() for name, index in zip(group.names, group.indices, strict=True)
        )
        return torch.stack([step.captured[name] for _, name in order])
