"""`--kv-max-tokens`: a pool that is smaller than the longest prompt serves it, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from thriftree.plugins.engine.kv import plan as plans
from thriftree.plugins.engine.kv.manager import CompressingKVCacheManager
from thriftree.plugins.engine.kv.plan import Plan, Tier
from thriftree.plugins.engine.kv.spec import TierSpec, cap
from thriftree.plugins.kv_cache import registry
from thriftree.zoo import tiny

from ..engines import Answer, Ask, Engine, assert_same, engine
from . import reference
from .replay import Recorder, asking, prompts, replay

pytestmark = pytest.mark.engine
NOISE = 1e-3
MODEL, CAP, CHUNK, BLOCK, LONG = "llama-gqa", 256, 128, 32, 1000
BLOCKS = cap(CAP, CHUNK, BLOCK) // BLOCK + 1  # the least: 448 tokens
FLAGS: dict[str, Any] = {"block_size": BLOCK, "max_model_len": 1500, "max_num_batched_tokens": CHUNK}
OURS = {"thriftree": {"kv": {"max_tokens": CAP}}}


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    path, trees = str(tiny.ensure(MODEL)), {"max_nodes": 8, "adaptive": False}
    with engine(path, trees, num_gpu_blocks_override=BLOCKS, additional_config=OURS, **FLAGS) as here:
        yield here


def patient(most: int = 600) -> Callable[[], None]:
    """For each step; a request that waits for ever is a failure and not a hanging test."""
    left = [most]

    def step() -> None:
        left[0] -= 1
        assert left[0] > 0, "somebody waits for ever"

    return step


def test_the_least_pool(running: Engine) -> None:
    assert running.scheduler.kv_cache_manager.block_pool.num_gpu_blocks == BLOCKS < LONG // BLOCK


@pytest.mark.parametrize("more", [{}, {"additional_config": OURS}], ids=["stock", "a block less than the least"])
def test_refused(more: dict[str, Any]) -> None:
    blocks = BLOCKS - bool(more)
    with (
        pytest.raises(ValueError, match="larger than the available KV cache memory"),
        engine(str(tiny.ensure(MODEL)), num_gpu_blocks_override=blocks, **FLAGS, **more),
    ):
        pass


@pytest.mark.parametrize(
    "rules",
    [
        [{"method": "observed", "budget": CAP}],
        [{"method": "snapkv"}],
        [{"method": "keydiff", "budget": 128, "per_head": True}],
        [{"method": "streaming_llm", "budget": CAP}, {"method": "h2o", "budget": 96}, {"budget": 100}],
    ],
    ids=str,
)
def test_equals_torch(running: Engine, rules: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, first = reference.load(str(tiny.ensure(MODEL))), running._serial
    recorder = Recorder(running, monkeypatch)
    lengths = (LONG, 700, 240)[: len(rules)]
    asks = [Ask(text, asking(kv, "auto", 50)) for text, kv in zip(prompts(*lengths), rules, strict=True)]
    answers = running.run(asks, patient())
    assert running.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS - 1
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        worst, flips = replay(model, running, recorder.of(first + i), ask, answer)
        assert worst < NOISE
        assert flips <= 8


def test_a_request_that_says_nothing(running: Engine) -> None:
    """The default of a server with a cap: it begins to work at the cap."""
    (text,) = prompts(LONG, seed=5)
    plain = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=5)
    said = asking({"method": "observed", "budget": CAP}, "auto", 40)
    silent, same = ([running.run([Ask(text, params)], patient())[0]] for params in (plain, said))
    assert_same(silent, same, NOISE)


@pytest.mark.parametrize("kv", ["off", {"method": "recycled_attention"}], ids=str)
def test_a_whole_cache_must_fit(running: Engine, kv: Any) -> None:
    short, long, much = prompts(CAP - 40, CAP - 39, 50, seed=6)
    served = running.run([Ask(short, asking(kv, tokens=40))], patient())[0]
    assert served is not None and len(served.tokens[0]) == 40
    unlimited = asking(kv)
    unlimited.max_tokens = None
    for text, params in ((long, asking(kv, tokens=40)), (much, unlimited)):
        with pytest.raises(VLLMValidationError, match=rf"thriftree\.kv: .* cap of {CAP} tokens .*--kv-max-tokens"):
            running.run([Ask(text, params)], patient())


def test_what_can_never_fit_is_an_error(running: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler's own guard, should the client's side let something pass: an error, and others go on."""
    monkeypatch.setattr(plans, "plan_of", lambda *_: SimpleNamespace(method=SimpleNamespace(reads=False)))
    text, other = prompts(LONG, 100, seed=8)
    running.run([Ask(other, asking("off", tokens=4))])
    answers = running.run([Ask(other, asking("off")), Ask(text, asking("off")), Ask(other, asking("off"))], patient())
    assert [answer and answer.finish for answer in answers] == [["length"], ["error"], ["length"]]


def test_starting_anew_beyond_the_pool(running: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt and answer are longer than the pool together: computed again, they are compressed as they come."""
    (text,) = prompts(200, seed=9)
    ask = Ask(text, asking({"method": "snapkv", "budget": 128}, tokens=380))
    recorder, first = Recorder(running, monkeypatch), running._serial
    step = patient(1000)

    def thrown_out_once() -> None:
        step()
        for request in running.scheduler.running:
            if request.num_computed_tokens > BLOCKS * BLOCK + 40 and not request.num_preemptions:
                assert running.scheduler.reset_prefix_cache(reset_running_requests=True)

    answer: Answer | None = running.run([ask], thrown_out_once)[0]
    record = recorder.of(first)
    assert len(record) == 2
    worst, _ = replay(reference.load(str(tiny.ensure(MODEL))), running, record, ask, answer)
    assert worst < NOISE


@given(
    heads=st.integers(1, 8),
    full=st.integers(0, 7),
    block=st.sampled_from([16, 32, 128]),
    budget=st.integers(200, 1000),
    chunk=st.integers(1, 2000),
    tokens=st.integers(1, 5000),
    prompt=st.integers(1, 5000),
)
def test_the_pool_at_start_is_what_a_request_takes(
    heads: int, full: int, block: int, budget: int, chunk: int, tokens: int, prompt: int
) -> None:
    """What is admitted needs no more than what the start-up check asks for, and never holds more than it says."""
    full = min(full, heads)
    defer = prompt <= budget
    method = registry.configure("razor_attention" if full else "knorm", {})
    plan = Plan("", method, budget, 4, 32, defer, False, min(prompt, tokens))
    tier = Tier(0, 1, block, heads, full)
    manager = CompressingKVCacheManager.__new__(CompressingKVCacheManager)
    manager._chunk, manager._tiers = chunk, [tier]
    blocks = manager._most_blocks(plan, tokens)
    spec = TierSpec(
        block_size=block, num_kv_heads=heads, head_size=32, dtype=torch.float32, full=full,
        max_tokens=cap(budget, chunk, block),
    )  # fmt: skip
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=5000),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
    )
    assert blocks <= spec.max_memory_usage_bytes(config) // spec.page_size_bytes
    window, length = plan.window(tier), 0
    while length < tokens:
        start = window.start(length)
        length = min(tokens, length + chunk)
        assert -(-length // block) - start // block <= blocks
