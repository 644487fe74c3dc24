"""Random requests in a small pool: afterwards all blocks are free, and nobody remembers anything."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from thriftree.plugins.kv_cache import registry
from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from .replay import head_file

pytestmark = pytest.mark.engine
BLOCK = 32
METHODS = registry.names()


def wish(chance: random.Random, number: int) -> Any:
    """A third keeps its cache; the others take every method in turn, with sizes of any kind."""
    if number % 3 == 0:
        return "off"
    kv: dict[str, Any] = {"method": METHODS[number % len(METHODS)], "sinks": chance.choice((0, 4, 9))}
    kv["recent"] = chance.choice((1, 8, 32))
    least = kv["sinks"] + kv["recent"] + BLOCK
    kv |= {"keep": chance.choice((0.1, 0.5, 1.0))} if number % 2 else {"budget": chance.randint(least, 2 * least)}
    if chance.random() < 0.5:
        kv["defer"] = chance.random() < 0.5
    if chance.random() < 0.3 and not registry.describe(kv["method"]).reads:
        kv["per_head"] = True
    return kv


def random_ask(chance: random.Random, number: int) -> Ask:
    length = chance.randint(1, 300) if number % 4 == 0 else chance.randint(1, 90)
    words = [chance.randrange(256) for _ in range(7)]
    prompt = [chance.choice(words) if number % 2 else chance.randrange(256) for _ in range(length)]
    params = SamplingParams(
        max_tokens=chance.choice((1, 4, 8, 12, 48)),
        extra_args={"thriftree": {"kv": wish(chance, number), "speculation": chance.choice(("auto", "off"))}},
        n=2 if number % 40 == 7 else 1,
        **({"temperature": 0.9, "seed": number} if number % 2 == 0 or number % 40 == 7 else {"temperature": 0.0}),
        **chance.choice(({}, {}, {"stop": ["a", "th"]}, {"stop_token_ids": list(range(0, 200))}, {"ignore_eos": True})),
    )
    return Ask(prompt, params, number // 4, chance.randint(0, 12) if number % 5 == 0 else None)


def left(running: Engine) -> dict[str, Any]:
    """What scheduler, worker and drafters still hold of any request."""
    scheduler, runner = running.scheduler, running.runner
    manager = scheduler._manager
    groups = scheduler.kv_cache_manager.coordinator.single_type_managers
    return {
        "plans": manager._plans,
        "freed": manager._freed,
        "starts": manager._starts,
        "told": scheduler._kv_told,
        "over": scheduler._over,
        "requests": scheduler.requests,
        "caches": runner._caches,
        "drafters": runner.proposer._live,
        "blocks": [group.req_to_blocks for group in groups if group.req_to_blocks],
        "cached": [group.num_cached_block for group in groups if group.num_cached_block],
        "pinned": [b.block_id for b in manager.block_pool.blocks if b.ref_cnt and not b.is_null],
    }


@pytest.mark.parametrize("number", [250, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_requests(number: int, tmp_path: Path) -> None:
    heads = head_file(tmp_path / "tiny.heads.json")
    flags = {
        "block_size": BLOCK,
        "max_model_len": 384,
        "max_num_seqs": 12,
        "max_num_batched_tokens": 160,
        "num_gpu_blocks_override": 60,
        "additional_config": {"thriftree": {"kv": {"heads": heads, "tiers": 2}}},
    }
    chance = random.Random(17)
    asks = [random_ask(chance, i) for i in range(number)]
    count = {"preempted": 0, "events": 0}
    with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 8, "adaptive": False, "memory_mib": 2}, **flags) as ours:
        pool = ours.scheduler.kv_cache_manager.block_pool
        before = pool.get_num_free_blocks()
        preempt = ours.scheduler._preempt_request
        ours.scheduler._preempt_request = lambda *a, **k: (_count(count, "preempted"), preempt(*a, **k))[1]
        tell = ours.scheduler._tell
        ours.scheduler._tell = lambda out, request: (
            tell(out, request),
            _count(count, "events") if out.kv_transfer_params else 0,
        )
        answers = ours.run(asks)
        ours.settle()
        assert pool.get_num_free_blocks() == before
        held = left(ours)
        held["drafters"] = [name for name in held["drafters"] if not name.startswith(f"r{ours._serial - 1}")]
        assert {name: what for name, what in held.items() if what} == {}
    assert sum(answer is not None for answer in answers) > 0.75 * number
    assert count["preempted"] > number / 100 and count["events"] > number / 6, count


def _count(count: dict[str, int], what: str) -> None:
    count[what] += 1
