"""Other shapes, on tiny random models: no GQA, sliding window by depth, biases; batches of 1, 3 and 8."""

from __future__ import annotations

import random
from typing import Any

import pytest
from vllm import SamplingParams

from thriftree.kernels.linear import available
from thriftree.zoo import tiny

from .engines import Ask, assert_same, engine

pytestmark = pytest.mark.engine
VOCABULARY = 256


def random_asks(number: int, seed: int, length: tuple[int, int] = (3, 120), tokens: int = 64) -> list[Ask]:
    rng = random.Random(seed)
    asks = []
    for i in range(number):
        # A few words said again and again, so that drafts find something.
        words = [[rng.randrange(VOCABULARY) for _ in range(4)] for _ in range(3)]
        prompt = [token for _ in range(rng.randint(*length) // 4 + 1) for token in rng.choice(words)]
        seeded = {"temperature": 0.8, "seed": i} if i % 4 == 3 else {"temperature": 0.0}
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, **seeded)
        asks.append(Ask(prompt, params, arrives=rng.randint(0, 20)))
    return asks


def waves(size: int, seed: int, number: int) -> list[list[Ask]]:
    return [random_asks(size, seed + i) for i in range(0, number, size)]


@pytest.mark.parametrize("name", sorted(tiny.SHAPES))
def test_same_answers(name: str) -> None:
    """72 prompts of a shape, 64 tokens each; 360 over all shapes."""
    model = str(tiny.ensure(name))
    groups = [*waves(1, 0, 8), *waves(3, 100, 24), *waves(8, 200, 40)]
    with engine(model) as plain:
        expected = [plain.run(group) for group in groups]
    with engine(model, {"max_nodes": 24, "adaptive": False}) as ours:
        got = [ours.run(group) for group in groups]
        ours.settle()
        assert ours.own_linear_layers or not available(), "vLLM's own products: equality would not be about ours"
        assert ours.runner.proposer.width._accepted > 0, "no draft was accepted: equality would mean nothing"
    for a, b in zip(expected, got, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(
    "flags",
    [
        {"max_num_batched_tokens": 64},
        {"max_num_batched_tokens": 48, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 10, "block_size": 32, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 12, "block_size": 32, "max_num_batched_tokens": 96},
    ],
    ids=["chunks", "small chunks, no prefix cache", "preemption", "preemption and chunks"],
)
def test_small_budgets(flags: dict[str, Any]) -> None:
    """Chunked prefill beside trees, and requests that are thrown out and computed again."""
    model = str(tiny.ensure("llama-gqa"))
    settings = {"max_model_len": 256, "max_num_seqs": 8, **flags}
    asks = [Ask(a.prompt, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.0), a.arrives)
            for a in random_asks(8, 7, (20, 180))]  # fmt: skip
    preempted = []
    with engine(model, **settings) as plain:
        expected = plain.run(asks)
    with engine(model, {"max_nodes": 16, "adaptive": False}, **settings) as ours:
        stock = ours.scheduler._preempt_request
        ours.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), stock(*a, **k))[1]
        got = ours.run(asks)
    assert_same(expected, got)
    assert bool(preempted) == ("num_gpu_blocks_override" in flags)


def test_seeded_prompt_in_chunks() -> None:
    """Plain vLLM dies here on a CPU (its generators cannot be rewound); the sample must be that of one chunk."""
    model = str(tiny.ensure("llama-gqa"))
    rng = random.Random(3)
    prompt = [rng.randrange(VOCABULARY) for _ in range(150)]
    asks = [Ask(prompt, SamplingParams(max_tokens=30, temperature=0.9, seed=11, ignore_eos=True))]
    with engine(model) as plain:
        expected = plain.run(asks)
    with engine(model, {"max_nodes": 8, "adaptive": False}, max_num_batched_tokens=64) as ours:
        assert_same(expected, ours.run(asks))


def test_random_requests_with_aborts_leave_nothing() -> None:
    """2,000 requests, a third of which the client leaves: the pool is full again, drafters hold nobody."""
    model = str(tiny.ensure("llama-gqa"))
    rng = random.Random(5)
    asks = []
    for i in range(2000):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))]
        sampled = {"temperature": 0.9, "seed": i, "n": 1 + (i % 50 == 0)} if i % 2 == 0 else {"temperature": 0.0}
        params = SamplingParams(max_tokens=rng.randint(1, 12), **sampled)
        leaves = rng.randint(0, 6) if i % 3 == 0 else None
        asks.append(Ask(prompt, params, arrives=i // 6, abort_after=leaves))
    settings = {"max_model_len": 128, "max_num_seqs": 12, "enable_prefix_caching": False}
    with engine(model, {"max_nodes": 8, "adaptive": False, "memory_mib": 2}, **settings) as ours:
        pool = ours.scheduler.kv_cache_manager.block_pool
        before = pool.get_num_free_blocks()
        answers = ours.run(asks)
        ours.settle()
        assert pool.get_num_free_blocks() == before
        assert len(ours.runner.proposer._live) <= 1
        assert ours.runner.proposer.stats()["state_bytes"] <= 2.2 * 2**20
        assert sum(answer is not None for answer in answers) > 1300
