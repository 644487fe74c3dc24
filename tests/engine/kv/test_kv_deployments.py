"""Compressed caches with adapters, on two ranks, in a process of their own, in bfloat16, compiled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from thriftree.plugins.engine.register import PROPOSER
from thriftree.zoo import tiny

from ..engines import Answer, Ask, assert_same, engine
from ..test_deployments import adapter
from . import reference
from .replay import Recorder, asking, prompts, replay
from .test_trees import repeating

pytestmark = pytest.mark.engine
NOISE = 1e-3
TREES: dict[str, Any] = {"max_nodes": 8, "adaptive": False}
RULES: list[dict[str, Any]] = [
    {"method": "streaming_llm", "budget": 96, "defer": True},
    {"method": "snapkv", "budget": 96},
    {"method": "observed", "budget": 128},
]
#: Their choices hang on the number of a head.
HASHED: list[dict[str, Any]] = [
    {"method": "random", "budget": 96},
    {"method": "keyformer", "budget": 128, "noise": 4.0},
    {"method": "random", "budget": 128, "defer": True, "recent": 8},
]
TEXTS = [repeating(length, seed) for seed, length in enumerate((260, 230, 300))]


def small(**kv: Any) -> dict[str, Any]:
    return {"block_size": 32, "max_num_batched_tokens": 192, "additional_config": {"thriftree": {"kv": kv}}}


def rules(tokens: int = 40, kinds: list[dict[str, Any]] = RULES) -> list[Ask]:
    return [Ask(text, asking(rule, "auto", tokens)) for text, rule in zip(TEXTS, kinds, strict=True)]


@pytest.fixture(scope="module")
def both() -> tuple[list[Answer | None], list[Answer | None]]:
    with engine(str(tiny.ensure("llama-gqa")), **small()) as plain:
        return plain.run(rules()), plain.run(rules(kinds=HASHED))


@pytest.fixture(scope="module")
def expected(both: tuple[list[Answer | None], list[Answer | None]]) -> list[Answer | None]:
    return both[0]


def test_adapters(tmp_path: Path) -> None:
    """Two adapters with the same prompts: neither finds the other's rows, whatever is compressed or published."""
    model = str(tiny.ensure("llama-gqa"))
    loras = [adapter(tmp_path / "one", model, 1), adapter(tmp_path / "two", model, 2)]
    kinds = ["off", *RULES[:2]]
    asks = [
        Ask(TEXTS[0], asking(kv, "auto", 40), arrives=3 * i, lora=loras[(i + turn) % 2])
        for turn in range(2)
        for i, kv in enumerate(kinds)
    ]
    flags = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2, **small()}
    with engine(model, enable_prefix_caching=False, **flags) as plain:
        alone = [plain.run([Ask(ask.prompt, ask.params, lora=ask.lora)])[0] for ask in asks]
    with engine(model, TREES, **flags) as ours:
        assert_same(alone, ours.run(asks), NOISE)
    assert len({tuple(answer.tokens[0]) for answer in alone if answer is not None}) == len(asks)


@pytest.mark.two_cores
def test_two_ranks_behind_an_engine_core_of_its_own(
    both: tuple[list[Answer | None], list[Answer | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Specs of tiers and caps reach the other processes, all sides plan alike, and each rank has half of the heads.

    It drops the same rows of them, also where a method draws lots by a head's number.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    flags = small(tiers=2, max_tokens=320)
    flags["additional_config"]["thriftree"]["speculation"] = {"adaptive": False}
    llm = LLM(
        str(tiny.ensure("llama-gqa")),
        speculative_config={"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 8},
        dtype="float32", enforce_eager=True, max_model_len=512,
        tensor_parallel_size=2, distributed_executor_backend="mp", **flags,
    )  # fmt: skip
    outputs = []
    for asks in (rules(tokens=20), rules(tokens=20, kinds=HASHED)):
        texts: list[Any] = [{"prompt_token_ids": list(ask.prompt)} for ask in asks]
        outputs += llm.generate(texts, [ask.params for ask in asks], use_tqdm=False)
    accepted = [stats["accepted"] for stats in llm.collective_rpc("thrift_stats")]
    llm.llm_engine.engine_core.shutdown()
    got = [list(one.outputs[0].token_ids) for one in outputs]
    assert got == [answer and answer.tokens[0][:20] for part in both for answer in part]
    assert accepted[0] == accepted[1] > 0


def test_bfloat16(expected: list[Answer | None]) -> None:
    """Other sums, other words; the first ones are float32's, and nothing is NaN."""
    kinds = [*RULES, {"method": "keydiff", "budget": 96, "per_head": True}, {"method": "keyformer", "budget": 96}]
    asks = [Ask(TEXTS[i % 3], asking(kv, "auto", 60)) for i, kv in enumerate(kinds)]
    with engine(str(tiny.ensure("llama-gqa")), TREES, dtype="bfloat16", **small()) as ours:
        counts: list[Any] = []
        tell = ours.scheduler._manager.counts
        ours.scheduler._manager.counts = lambda request: counts.append(tell(request)) or counts[-1]
        answers = ours.run(asks)
        assert max(count["blocks"] for count in counts) > 0
    for answer, exact in zip(answers[:3], expected, strict=True):
        assert answer is not None and exact is not None
        first, second = answer.logprobs[0][0], exact.logprobs[0][0]
        shared = first.keys() & second.keys()
        assert len(shared) >= 3 and all(abs(first[token] - second[token]) < 0.5 for token in shared)
    values = [p for answer in answers if answer for step in answer.logprobs[0] or () for p in step.values()]
    assert len(values) >= 5 * 60 * len(asks) and all(map(math.isfinite, values))


def test_the_default_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own block size on a CPU, 128 tokens."""
    (text,) = prompts(700, seed=22)
    with engine(str(tiny.ensure("llama-gqa")), TREES, additional_config={"thriftree": {"kv": {}}}) as ours:
        assert ours.runner.compression.terms.block == 128
        asks = [Ask(text, asking({"method": name, "budget": 200}, "auto", 150)) for name in ("snapkv", "observed")]
        recorder = Recorder(ours, monkeypatch)
        answers = ours.run(asks)
        model = reference.load(str(tiny.ensure("llama-gqa")))
        for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
            record = recorder.of(i)
            assert len(record[0].kept[0]) == 3, "one event after the prompt, two in the answer"
            assert replay(model, ours, record, ask, answer)[0] < NOISE


def test_compiled(expected: list[Answer | None]) -> None:
    with engine(str(tiny.ensure("llama-gqa")), TREES, enforce_eager=False, **small()) as ours:
        assert_same(expected, ours.run(rules()), NOISE)
