"""Every method on the real engine equals plain torch that follows the same schedule, at every generated token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from thriftree.plugins.kv_cache import registry
from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from . import reference
from .replay import Recorder, asking, head_file, prompts, replay

pytestmark = pytest.mark.engine
MODEL, BLOCK = "llama-gqa", 32
NOISE = 1e-3  # of a log-probability; the engine's and torch's float32 sums differ by 3e-4 where nothing is dropped
RULES = [({"method": name, "defer": defer}) for name in registry.names() for defer in (True, False)]
RULES += [{"method": name, "per_head": True} for name in ("keydiff", "observed", "razor_observed", "snapkv")]
RULES += [{"method": "keydiff", "per_head": True, "defer": False}]
RULES += [{"method": "recycled_attention", "check_every": every, "similarity": 0.3} for every in (0, 3)]


@pytest.fixture(scope="module")
def model() -> Any:
    return reference.load(str(tiny.ensure(MODEL)))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two tiers, in each of which one layer has a retrieval head: four kinds of layers."""
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json")
    ours = {"thriftree": {"kv": {"tiers": 2, "heads": heads}}}
    flags = {"block_size": BLOCK, "max_num_batched_tokens": 96, "additional_config": ours}
    with engine(str(tiny.ensure(MODEL)), **flags) as here:
        assert not here.runner.compression.terms.missing
        yield here


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_equals_torch(running: Engine, model: Any, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = running.scheduler.kv_cache_manager.block_pool
    before, first = pool.get_num_free_blocks(), running._serial
    asks = [Ask(prompt, asking({**rule, "budget": 128})) for prompt in prompts(500, 333, seed=first)]
    recorder = Recorder(running, monkeypatch)
    answers = running.run(asks)
    assert pool.get_num_free_blocks() == before
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        record = recorder.of(first + i)
        worst, flips = replay(model, running, record, ask, answer)
        assert worst < NOISE
        assert flips <= 8
        assert replay(model, running, record, ask, answer, evicts=False)[0] > 100 * NOISE, "nothing was dropped"
