"""The drafting side of the runner: what vLLM's `custom_class` proposer is for us.

It feeds the drafters with what each step verified, asks them for trees, and lets the width controller cut these to
what pays. Everything here is bookkeeping; the methods live in `thriftree.plugins.speculative`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftree.plugins.engine.drafting import Drafting, drafting_of
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.engine.tree_tokens import TreeTokens, as_tokens
from thriftree.plugins.speculative.pool import DrafterPool
from thriftree.plugins.speculative.tree import DraftTree
from thriftree.plugins.speculative.width import WidthConfig, WidthController

TOP = 8
NO_TREE = DraftTree()


@dataclass(slots=True)
class _Step:
    """The step that runs now, for the width controller."""

    rows: int = 0
    requests: frozenset[str] = frozenset()
    began: float = 0.0
    pure: bool = False  # no prompt rows: its time says what verified rows cost
    promised: float = 0.0
    accepted: int = 0


class TreeProposer:
    """Named by ``--speculative-config '{"method": "custom_class", "model": "...TreeProposer"}'``."""

    def __init__(self, vllm_config: Any) -> None:
        self.options = SpeculationOptions.of(vllm_config.additional_config)
        self.cap = min(self.options.max_nodes, vllm_config.speculative_config.num_speculative_tokens)
        self.max_model_len = vllm_config.model_config.max_model_len
        self.row_budget = vllm_config.scheduler_config.max_num_batched_tokens
        self.pool = DrafterPool(self.options.memory_mib << 20, self.options.method)
        self.width = WidthController(WidthConfig(max_nodes=self.cap))
        #: Levels that a request of that length may gain in a step, for reasons of the runner's.
        self.levels: Callable[[str, int], int] = lambda request, length: self.max_model_len
        self._live: dict[str, Drafting] = {}
        self._rows: NDArray[np.int32] | None = None  # top tokens of every verified row of this step
        self._trees: Sequence[DraftTree] = ()
        self._step = _Step()
        self._drafted = self._accepted = 0

    def load_model(self, model: Any) -> None:
        """Drafters have no weights."""

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """vLLM's interface for chains; the runner of `TreeCPUWorker` calls `draft` instead."""
        raise RuntimeError("TreeProposer needs --worker-cls thriftree.plugins.engine.worker.TreeCPUWorker")

    def begin_step(self, rows: int, requests: Sequence[str], prompt_rows: bool) -> None:
        """A step starts; the time since the last one began is what the last one cost, if the engine did not idle."""
        last = self._step
        self._step = _Step(rows, frozenset(requests), time.perf_counter(), pure=not prompt_rows)
        busy = last.pure and not last.requests.isdisjoint(self._step.requests)
        seconds = self._step.began - last.began if busy else 0.0
        self.width.learn_step(last.rows, seconds, last.promised, last.accepted)

    def see(self, logits: Tensor, requests: Sequence[str], trees: Sequence[DraftTree]) -> None:
        """The raw logits of all verified rows, before anything processes them in place."""
        self._trees = trees
        wanted = any(r not in self._live or self.pool.wants_rows(r) for r in requests)
        self._rows = top_rows(logits) if wanted else None

    def judge(self, accepted: Sequence[Sequence[int]]) -> None:
        """What was promised against what was kept."""
        for tree, path in zip(self._trees, accepted, strict=True):
            self._step.promised += sum(tree.values)
            self._step.accepted += len(path)
            self._drafted += len(tree)
            self._accepted += len(path)

    def draft(
        self,
        states: Mapping[str, Any],
        requests: Sequence[str],
        sampled: Sequence[Sequence[int]],
        scheduled: Mapping[str, int],
        computed: NDArray[np.int32],
        logits_of: Callable[[Tensor], Tensor],
    ) -> list[TreeTokens]:
        """Teach the drafters this step and propose the next one's trees, in batch order.

        Args:
            sampled: the step's new tokens, empty for a prompt chunk that is not the last.
            scheduled, computed: rows of each request in this step, and tokens it had in the cache before.
            logits_of: the LM head over given rows of the step's hidden states.
        """
        batch = [
            self._live.get(r) or self._admit(states[r], len(tokens))
            for r, tokens in zip(requests, sampled, strict=True)
        ]
        self._seed(batch, scheduled, computed, logits_of)
        row = 0
        for one, tree, tokens in zip(batch, self._trees, sampled, strict=True):
            if tokens:
                self._learn(one, tree, None if self._rows is None else self._rows[row : row + len(tree) + 1], tokens)
            row += len(tree) + 1
        ready = [one.drafts and bool(tokens) for one, tokens in zip(batch, sampled, strict=True)]
        return [as_tokens(tree) for tree in self._propose(batch, ready, [bool(tokens) for tokens in sampled])]

    def finish(self, request: str) -> None:
        """The request is over, however it ended."""
        if self._live.pop(request, None) is not None:
            self.pool.finish(request)

    def stats(self) -> dict[str, Any]:
        """What operators see."""
        costs = {rows: round(seconds, 6) for rows, seconds in self.width.cost.table().items()}
        return {
            "state_bytes": self.pool.state_bytes(),
            "live": len(self._live),
            "drafted": self._drafted,
            "accepted": self._accepted,
            "step_seconds": costs,
        }

    def _propose(self, batch: Sequence[Drafting], ready: Sequence[bool], speaks: Sequence[bool]) -> list[DraftTree]:
        trees = [NO_TREE] * len(batch)
        drafting = [i for i, one in enumerate(ready) if one]
        others = len(batch) - len(drafting)
        speaking = sum(speaks) - len(drafting)  # of those, the ones that emit a token in the next step
        cap = min(self.cap, self.row_budget // max(len(batch), 1) - 1)
        if self.options.adaptive:
            cap = min(cap, self.width.plan(len(drafting), rows=others, tokens=speaking))
        if not drafting or cap < 1:
            return trees
        began = time.perf_counter()
        for i in drafting:
            one = batch[i]
            nodes = min(cap, one.max_nodes)
            depth = min(one.room(self.max_model_len), self.levels(one.request, one.length))
            if nodes > 0 and depth > 0:
                trees[i] = self.pool.propose(one.request, nodes, depth)
        self.width.learn_draft(len(drafting), time.perf_counter() - began)
        if self.options.adaptive:
            kept = self.width.choose([trees[i] for i in drafting], rows=others, tokens=speaking)
            for i, nodes in zip(drafting, kept, strict=True):
                trees[i] = trees[i][:nodes]
        return trees

    def _admit(self, state: Any, fresh: int) -> Drafting:
        one = self._live[state.req_id] = drafting_of(state, self.options, self.cap, fresh)
        self.pool.start(one.request, one.tenant, one.prompt, one.method, one.parameters)
        return one

    def _learn(self, one: Drafting, tree: DraftTree, rows: NDArray[np.int32] | None, tokens: Sequence[int]) -> None:
        if rows is not None:
            pairs = [one.tail]
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                pairs.append((pairs[parent + 1][1], token))
            self.pool.observe(one.request, pairs, rows)
        self.pool.emit(one.request, tokens)
        one.emit(tokens)

    def _seed(
        self,
        batch: Sequence[Drafting],
        scheduled: Mapping[str, int],
        computed: NDArray[np.int32],
        logits_of: Callable[[Tensor], Tensor],
    ) -> None:
        """Teach the drafters from prompt rows: only rows that are news, and few, since each runs the LM head."""
        picked: list[tuple[Drafting, list[tuple[int, int]]]] = []
        wanted: list[int] = []
        start = 0
        for i, one in enumerate(batch):
            count, first = scheduled[one.request], int(computed[i])
            end = min(first + count, len(one.prompt)) - 1  # the last prompt row is sampled: `_learn` sees it
            share = int(self.options.seed_share * (end - first))
            if share > 0 and self.pool.wants_rows(one.request):
                pairs = [(one.prompt[p - 1] if p else -1, one.prompt[p]) for p in range(first, end)]
                news = self.pool.unseen(one.request, pairs)[-share:]
                picked.append((one, [pairs[n] for n in news]))
                wanted += [start + n for n in news]
            start += count
        if not wanted:
            return
        rows = top_rows(logits_of(torch.tensor(wanted)))
        taken = 0
        for one, pairs in picked:
            self.pool.observe(one.request, pairs, rows[taken : taken + len(pairs)])
            taken += len(pairs)


def top_rows(logits: Tensor) -> NDArray[np.int32]:
    """``[rows, TOP]`` most likely tokens; -1 where a grammar mask left fewer."""
    values, tokens = logits.topk(TOP, dim=-1)
    masked: NDArray[np.int32] = tokens.masked_fill(values == -float("inf"), -1).int().cpu().numpy()
    return masked
