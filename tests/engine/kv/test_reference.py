"""Every method on the real engine equals plain torch that follows the same schedule, at every generated token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor
from vllm import SamplingParams

from thriftree.plugins.engine.kv.cached import CachedRows
from thriftree.plugins.kv_cache import registry
from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from .reference import Reference

pytestmark = pytest.mark.engine
MODEL, BLOCK, TOP = "llama-gqa", 32, 5
NOISE = 1e-3  # of a log-probability; the engine's and torch's float32 sums differ by 3e-4 where nothing is dropped
RULES = [(name, defer) for name in registry.names() for defer in (True, False)]


def asking(kv: dict[str, Any] | str, speculation: str = "off", tokens: int = 100) -> SamplingParams:
    contract = {"kv": kv, "speculation": speculation}
    return SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=TOP, extra_args={"thriftree": contract}
    )


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(256) for _ in range(length)] for length in lengths]


class Recorder:
    """The schedule of a run: how many rows each request got in each step, without drafts."""

    def __init__(self, running: Engine, patch: pytest.MonkeyPatch) -> None:
        self.chunks: dict[str, list[int]] = {}
        runner = running.runner
        stock = runner._prepare_inputs

        def prepare(scheduler_output: Any, scheduled: Any) -> Any:
            for name, rows in scheduler_output.num_scheduled_tokens.items():
                self.chunks.setdefault(name, []).append(rows)
            return stock(scheduler_output, scheduled)

        patch.setattr(runner, "_prepare_inputs", prepare)
        #: What was kept at each event.
        self.kept: dict[str, list[Tensor]] = {}
        stock_event = CachedRows.compact

        def compact(rows: CachedRows, *args: Any) -> int:
            dropped = stock_event(rows, *args)
            if dropped:
                name = next(n for n, cache in runner._caches.items() if rows in cache.groups)
                self.kept.setdefault(name, []).append(rows._pos.sort(-1).values)
            return dropped

        patch.setattr(CachedRows, "compact", compact)

    def of(self, number: int) -> tuple[list[int], list[Tensor]]:
        """Chunks and kept rows of request `number`."""
        name = next(name for name in self.chunks if name.partition("-")[0] == f"r{number}")
        return self.chunks[name], self.kept.get(name, [])


def replay(model: Any, running: Engine, record: Any, ask: Ask, answer: Any, evicts: bool = True) -> tuple[float, int]:
    """Largest difference of a log-probability of the engine's top tokens (inf where the greedy token differs), and the
    number of rows that were kept for others that score alike."""
    chunks, kept = record
    compression = running.runner.compression
    plan = compression.plan(ask.params, len(ask.prompt))
    reference = Reference(model, plan, running.scheduler._manager._tiers[0], evicts)
    text, worst = [*ask.prompt, *answer.tokens[0]], 0.0
    hit = len(text) - 1 - sum(chunks)  # tokens that came from the prefix cache
    chosen = list(kept)
    done = 0
    for rows in [hit, *chunks] if hit else chunks:
        said = reference.step(text[done : done + rows], chosen)[-1]
        done += rows
        emitted = done - len(ask.prompt)
        if emitted < 0 or emitted >= len(answer.tokens[0]):
            continue
        if int(said.argmax()) != answer.tokens[0][emitted]:
            return float("inf"), reference.flips
        worst = max(worst, *(abs(float(said[t]) - p) for t, p in answer.logprobs[0][emitted].items()))
    assert emitted == len(answer.tokens[0]) - 1
    return worst, reference.flips


@pytest.fixture(scope="module")
def model() -> Any:
    return Reference.load(str(tiny.ensure(MODEL)))


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    flags = {"block_size": BLOCK, "max_num_batched_tokens": 96, "additional_config": {"thriftree": {"kv": {}}}}
    with engine(str(tiny.ensure(MODEL)), **flags) as ours:
        yield ours


@pytest.mark.parametrize(("method", "defer"), RULES)
def test_equals_torch(running: Engine, model: Any, method: str, defer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = running.runner.compression.terms
    if method in terms.missing:
        pytest.skip(f"{method}: {terms.missing[method]}")
    pool = running.scheduler.kv_cache_manager.block_pool
    before, first = pool.get_num_free_blocks(), running._serial
    asks = [
        Ask(p, asking({"method": method, "budget": 128, "defer": defer})) for p in prompts(500, 333, 700, seed=first)
    ]
    recorder = Recorder(running, monkeypatch)
    answers = running.run(asks)
    assert pool.get_num_free_blocks() == before
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        record = recorder.of(first + i)
        worst, flips = replay(model, running, record, ask, answer)
        assert worst < NOISE
        assert flips <= 8
        assert replay(model, running, record, ask, answer, evicts=False)[0] > 100 * NOISE, "nothing was dropped"
