"""The drafting side of the runner: what vLLM's `custom_class` proposer is for us.

It feeds the drafters with what each step verified, asks them for trees, and lets the width controller cut these to
what pays. Everything here is bookkeeping; the methods live in `thriftree.plugins.speculative`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftree.plugins.engine.drafting import Drafting, drafting_of
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.engine.tree_tokens import TreeTokens
from thriftree.plugins.speculative.pool import DrafterPool
from thriftree.plugins.speculative.tree import DraftTree
from thriftree.plugins.speculative.width import WidthController

TOP = 8
NO_TREE = DraftTree()


class TreeProposer:
    """Named by ``--speculative-config '{"method": "custom_class", "model": "...TreeProposer"}'``."""

    def __init__(self, vllm_config: Any) -> None:
        self.options = SpeculationOptions.of(vllm_config.additional_config)
        self.cap = min(self.options.max_nodes, vllm_config.speculative_config.num_speculative_tokens)
        self.max_model_len = vllm_config.model_config.max_model_len
        self.row_budget = vllm_config.scheduler_config.max_num_batched_tokens
        self.pool = DrafterPool(memory_bytes=self.options.memory_mib << 20)
        self.width = WidthController()
        self._live: dict[str, Drafting] = {}
        self._rows: NDArray[np.int32] | None = None  # top-k of every verified row of this step
        self._trees: Sequence[DraftTree] = ()
        self._pure_rows = 0  # rows of this step if it only decodes, else 0
        self._began = 0.0
        self._members: frozenset[str] = frozenset()

    def load_model(self, model: Any) -> None:
        """Drafters have no weights."""

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """vLLM's interface for chains; the runner of `TreeCPUWorker` calls `draft` instead."""
        raise RuntimeError("TreeProposer needs --worker-cls thriftree.plugins.engine.worker.TreeCPUWorker")

    def begin_step(self, rows: int, requests: Sequence[str], prompt_rows: bool) -> None:
        """A step starts; the time since the last one began is what the last one cost, if the engine did not idle."""
        now = time.perf_counter()
        members = frozenset(requests)
        if self._pure_rows and self._members & members:
            self.width.measured(self._pure_rows, len(self._members), now - self._began)
        self._began, self._members = now, members
        self._pure_rows = 0 if prompt_rows else rows

    def see(self, logits: Tensor, trees: Sequence[DraftTree]) -> None:
        """The raw logits of all verified rows, before anything processes them in place."""
        self._trees = trees
        self._rows = top_rows(logits) if self.pool.wants_rows else None

    def judge(self, trees: Sequence[DraftTree], accepted: Sequence[Sequence[int]]) -> None:
        """What was promised against what was kept."""
        for tree, path in zip(trees, accepted, strict=True):
            if len(tree.values) == len(tree) > 0:
                self.width.realised(sum(tree.values), len(path))

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
            self._live.get(r) or self._admit(states[r], len(tokens)) for r, tokens in zip(requests, sampled, strict=True)
        ]
        self._seed(batch, requests, scheduled, computed, logits_of)
        cap = min(self.cap, self.row_budget // len(requests) - 1)
        trees: list[DraftTree] = []
        row = 0
        for one, tree, tokens in zip(batch, self._trees, sampled, strict=True):
            rows = None if self._rows is None else self._rows[row : row + len(tree) + 1]
            row += len(tree) + 1
            if not tokens:
                trees.append(NO_TREE)
                continue
            self._learn(one, tree, rows, tokens)
            nodes = min(cap, one.max_nodes) if self.width.open(len(requests)) or not self.options.adaptive else 0
            depth = one.room(self.max_model_len)
            proposed = self.pool.propose(one.request, nodes, depth) if one.drafts and min(nodes, depth) > 0 else NO_TREE
            trees.append(proposed)
        if self.options.adaptive:
            kept = self.width.choose(trees, len(requests))
            trees = [tree[:n] for tree, n in zip(trees, kept, strict=True)]
        return [TreeTokens(tree.tokens, tree.parents) for tree in trees]

    def finish(self, request: str) -> None:
        """The request is over, however it ended."""
        if self._live.pop(request, None) is not None:
            self.pool.finish(request)

    def stats(self) -> dict[str, Any]:
        """What operators see: nodes now, memory held."""
        return {"state_bytes": self.pool.state_bytes(), "live": len(self._live), "width": self.width.summary()}

    def _admit(self, state: Any, fresh: int) -> Drafting:
        one = self._live[state.req_id] = drafting_of(state, self.options, self.cap, fresh)
        self.pool.start(one.request, one.tenant, one.prompt, one.method)
        return one

    def _learn(
        self, one: Drafting, tree: DraftTree, rows: NDArray[np.int32] | None, tokens: Sequence[int]
    ) -> None:
        if rows is not None:
            before, last = one.tail
            pairs = [(before, last)]
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                pairs.append((pairs[parent + 1][1], token))
            self.pool.observe(one.request, pairs, rows)
        self.pool.emit(one.request, tokens)
        one.emit(tokens)

    def _seed(
        self,
        batch: Sequence[Drafting],
        requests: Sequence[str],
        scheduled: Mapping[str, int],
        computed: NDArray[np.int32],
        logits_of: Callable[[Tensor], Tensor],
    ) -> None:
        """Teach the drafters from prompt rows: only rows that are news, and few, since each runs the LM head."""
        if self._rows is None or not self.options.seed_share:
            return
        picked: list[tuple[Drafting, list[tuple[int, int]]]] = []
        wanted: list[int] = []
        start = 0
        for i, (one, request) in enumerate(zip(batch, requests, strict=True)):
            count, first = scheduled[request], int(computed[i])
            end = min(first + count, len(one.prompt)) - 1  # the last prompt row is sampled: `_learn` sees it
            if count > 1 and end > first:
                pairs = [(one.prompt[p - 1] if p else -1, one.prompt[p]) for p in range(first, end)]
                news = self.pool.unseen(one.request, pairs)[-max(1, int(self.options.seed_share * count)) :]
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
