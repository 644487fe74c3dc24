"""Token trees on vLLM's V1 model runner: a mixin that overrides six hooks of a step, in the order of this file.

Nothing here knows the device; the attention back end (see `cpu_attention`) does.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.logits_processor import LogitsProcessors, build_logitsprocs
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from thriftree.plugins.engine.cpu_attention import GroupCommit, TreeBackend, TreeMetadataBuilder
from thriftree.plugins.engine.kv.runner import CompressingRunnerMixin
from thriftree.plugins.engine.proposer import TreeProposer
from thriftree.plugins.engine.seam import replaced
from thriftree.plugins.engine.step import TreeStep, plan_step
from thriftree.plugins.engine.tree_tokens import TreeTokens, as_tree
from thriftree.plugins.engine.verify import verify

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Base
else:
    Base = object


def _all_processors(vllm_config: Any, *args: Any, **kwargs: Any) -> LogitsProcessors:
    plain = copy.copy(vllm_config)
    plain.speculative_config = None
    return build_logitsprocs(plain, *args, **kwargs)


class TreeRunnerMixin(Base):
    """Before a V1 runner class: its drafts become trees."""

    _step: TreeStep | None = None
    _accepted: list[list[int]] | None
    _draft_slots: list[Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # vLLM builds no min_p, logit_bias or custom processors under speculation, since its rejection sampler cannot
        # apply them. A level of a tree is a plain sampler call, so all of them hold here.
        with replaced(gpu_model_runner, "build_logitsprocs", _all_processors):
            super().__init__(*args, **kwargs)
        self._commits: list[GroupCommit] = []
        if isinstance(self, CompressingRunnerMixin):
            self.proposer.levels = self._levels

    @property
    def proposer(self) -> TreeProposer:
        assert isinstance(self.drafter, TreeProposer)
        return self.drafter

    def initialize_attn_backend(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_attn_backend(*args, **kwargs)
        backends = {group.backend for groups in self.attn_groups for group in groups}
        blind = sorted(backend.get_name() for backend in backends if not issubclass(backend, TreeBackend))
        if blind:
            # A tree under a causal mask would give wrong answers in silence.
            raise RuntimeError(f"token trees need tree attention in every layer; this model also uses {blind}")

    # 1. Rows: depth positions, and the cache slots of drafts are set aside.
    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self._begin(scheduler_output, num_scheduled_tokens)
        if not drafts:
            self._step = None
            return prepared
        batch = self.input_batch
        step = plan_step(
            [as_tree(drafts.get(request, ())) for request in batch.req_ids],
            batch.num_computed_tokens_cpu[: batch.num_reqs],
            num_scheduled_tokens,
        )
        self._step = step
        rows = torch.from_numpy(step.node_rows).to(self.device)
        positions = torch.from_numpy(step.node_positions).to(self.device)
        self.positions[rows] = positions
        if self.uses_mrope:
            # Text after the prompt advances all three axes together: root plus depth.
            roots = torch.from_numpy(np.repeat(step.first_row, step.tree_rows - 1)).to(self.device)
            depth = torch.from_numpy(step.depth[step.node_rows]).to(self.device)
            self.mrope_positions.gpu[:, rows] = self.mrope_positions.gpu[:, roots] + depth
        self.input_ids.gpu[rows] = self.input_ids.gpu[rows].clamp_(min=0)  # the scheduler's padding is -1
        self._draft_slots = []
        for table in batch.block_table.block_tables:
            self._draft_slots.append(table.slot_mapping.gpu[rows])
            table.slot_mapping.gpu[rows] = -1
        return prepared

    def _begin(self, scheduler_output: Any, scheduled: Any) -> None:
        """Tell the proposer what this step is, for its cost curve."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        rows = int(scheduled.sum())
        decode = self.input_batch.num_reqs + sum(map(len, drafts.values()))
        self.proposer.begin_step(rows, self.input_batch.req_ids, prompt_rows=rows != decode)

    # 2. Attention: the metadata builders see the step.
    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        for builder in self._tree_builders():
            builder.step = self._step
        return super()._build_attention_metadata(*args, **kwargs)

    def _tree_builders(self) -> list[TreeMetadataBuilder]:
        groups = [group.get_metadata_builder(0) for groups in self.attn_groups for group in groups]
        return [builder for builder in groups if isinstance(builder, TreeMetadataBuilder)]

    # 3. Verification, and 4. the accepted path moves into the cache.
    def _sample(self, logits: Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None) -> SamplerOutput:
        if logits is None or spec_decode_metadata is None:
            return super()._sample(logits, spec_decode_metadata)
        batch = self.input_batch
        step = self._step
        empty = as_tree(())
        trees = step.trees if step is not None else [empty] * batch.num_reqs
        self.proposer.see(logits, batch.req_ids, trees)
        output, accepted = verify(
            logits,
            trees,
            self.sampler,
            batch.sampling_metadata,
            [self.requests[request].output_token_ids for request in batch.req_ids],
            self._silent(),
        )
        self.proposer.judge(accepted)
        self._accepted = accepted
        if step is not None:
            self._commit(step, accepted)
        return output

    def _silent(self) -> list[int]:
        silent: list[int] = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
        return silent

    def _commit(self, step: TreeStep, accepted: list[list[int]]) -> None:
        nodes: list[int] = []
        first: list[int] = []
        start = 0
        for tree, path in zip(step.trees, accepted, strict=True):
            nodes += [start + node for node in path]
            first += [start + level for level in range(len(path))]  # the slot of level 1, 2, ... after the root
            start += len(tree)
        if not nodes:
            return
        taken, targets = torch.tensor(nodes, device=self.device), torch.tensor(first, device=self.device)
        if not self._commits:
            layers = self.compilation_config.static_forward_context
            groups = self.kv_cache_config.kv_cache_groups
            self._commits = [GroupCommit([layers[name] for name in group.layer_names]) for group in groups]
        for commit, slots in zip(self._commits, self._draft_slots, strict=True):
            commit(taken, slots[targets])

    # 5. Book-keeping: a CPU generator has no offset to rewind, and verification did not advance these anyway.
    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        hidden = {i: generators.pop(i) for i in self._silent() if i in generators}
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            generators.update(hidden)

    # 6. Drafting for the next step.
    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        return True  # depth is bounded per request, near max_model_len too

    def propose_draft_token_ids(
        self,
        scheduler_output: Any,
        sampled_token_ids: Any,
        sampling_metadata: Any,
        hidden_states: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> list[TreeTokens]:  # type: ignore[override]
        return self.proposer.draft(
            self.requests,
            self.input_batch.req_ids,
            sampled_token_ids,
            scheduler_output.num_scheduled_tokens,
            self.input_batch.num_computed_tokens_cpu,
            lambda rows: self.model.compute_logits(hidden_states[rows]),
        )

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)
        self.proposer.finish(req_id)


class CompressingCPUModelRunner(CompressingRunnerMixin, CPUModelRunner):
    """The CPU engine's runner with compressed caches."""


class TreeCPUModelRunner(TreeRunnerMixin, CompressingCPUModelRunner):
    """The same with trees."""
