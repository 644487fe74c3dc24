"""Verification with vLLM's own sampler: one plain sampler call per tree level, at every request's current node.

So each level *is* a plain decoding step: seeds, penalties, bad words, minimum tokens, logit processors, logprobs and
grammar masks act exactly as they do without speculation, and the output law does not change (see `walk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor.builtin import LogitBiasLogitsProcessor, MinTokensLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from thriftree.plugins.speculative.tree import DraftTree
from thriftree.plugins.speculative.walk import Walk, greedy_walk

PLACEHOLDER = -1


def plain_greedy(metadata: SamplingMetadata) -> bool:
    """Whether the argmax of the raw logits is what every request would sample."""
    holder = metadata.thinking_budget_state_holder
    return (
        metadata.all_greedy
        and metadata.no_penalties
        and metadata.max_num_logprobs is None
        and not metadata.logprob_token_ids
        and not metadata.bad_words_token_ids
        and metadata.allowed_token_ids_mask is None
        and (holder is None or not holder.has_tracked_requests())
        and not any(_acts(processor) for processor in metadata.logitsprocs.non_argmax_invariant)
    )


def _acts(processor: object) -> bool:
    if isinstance(processor, MinTokensLogitsProcessor):
        return bool(processor.min_toks)
    if isinstance(processor, LogitBiasLogitsProcessor):
        return bool(processor.biases)
    return True


def verify(
    logits: Tensor,
    trees: Sequence[DraftTree],
    sampler: Sampler,
    metadata: SamplingMetadata,
    outputs: Sequence[list[int]],
    silent: Sequence[int],
) -> tuple[SamplerOutput, list[list[int]]]:
    """Walk every request down its tree.

    Args:
        logits: ``[rows, vocabulary]``, each request's root row and node rows, requests one after the other.
        trees: ``[requests]``, empty where a request has no drafts.
        outputs: ``[requests]`` live output token ids; extended level by level and restored before return.
        silent: requests whose sample is thrown away (a prompt chunk that is not the last): their generators rest.

    Returns:
        The sampler output, ``[requests, longest run]`` padded with -1, and the accepted nodes of each request.
    """
    base, row = [], 0
    for tree in trees:
        base.append(row)
        row += len(tree) + 1
    if plain_greedy(metadata):
        best = Sampler.greedy_sample(logits.to(torch.float32)).tolist()
        runs, accepted = [], []
        for first, tree in zip(base, trees, strict=True):
            path, bonus = greedy_walk(tree, best[first : first + len(tree) + 1])
            accepted.append(path)
            runs.append([*(tree.tokens[node] for node in path), bonus])
        return SamplerOutput(_padded(runs, logits.device), None), accepted
    return _by_levels(logits, base, trees, sampler, metadata, outputs, silent)


def _by_levels(
    logits: Tensor,
    base: Sequence[int],
    trees: Sequence[DraftTree],
    sampler: Sampler,
    metadata: SamplingMetadata,
    outputs: Sequence[list[int]],
    silent: Sequence[int],
) -> tuple[SamplerOutput, list[list[int]]]:
    walks = [Walk(tree) for tree in trees]
    live = set(range(len(trees)))
    quiet = set(silent)
    runs: list[list[int]] = [[] for _ in trees]
    levels: list[LogprobsTensors] = []
    processors = [*metadata.logitsprocs.non_argmax_invariant, *metadata.logitsprocs.argmax_invariant]
    try:
        while live:
            current = [first + walk.row for first, walk in zip(base, walks, strict=True)]
            rows = torch.tensor(current, device=logits.device)
            generators = {i: g for i, g in metadata.generators.items() if i in live and i not in quiet}
            sampled = sampler(logits=logits[rows], sampling_metadata=replace(metadata, generators=generators))
            if sampled.logprobs_tensors is not None:
                levels.append(sampled.logprobs_tensors)
            tokens = sampled.sampled_token_ids.flatten().tolist()
            still = set()
            for i in live:
                runs[i].append(tokens[i])
                if walks[i].advance(tokens[i]):
                    outputs[i].append(tokens[i])
                    still.add(i)
            live = still
            if live:
                for processor in processors:
                    processor.update_state(None)
    finally:
        for output, walk in zip(outputs, walks, strict=True):
            if walk.accepted:
                del output[-len(walk.accepted) :]
    return SamplerOutput(_padded(runs, logits.device), _stacked(levels)), [walk.accepted for walk in walks]


def _padded(runs: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, runs))
    padded = [[*run, *[PLACEHOLDER] * (longest - len(run))] for run in runs]
    return torch.tensor(padded, dtype=torch.int32, device=device)


def _stacked(levels: Sequence[LogprobsTensors]) -> LogprobsTensors | None:
    """``[requests * levels, ...]``, a request's levels next to each other, as vLLM's parser expects them."""
    if not levels:
        return None

    def stack(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(parts), dim=1).flatten(0, 1)

    return LogprobsTensors(
        stack([level.logprob_token_ids for level in levels]),
        stack([level.logprobs for level in levels]),
        stack([level.selected_token_ranks for level in levels]),
    )
