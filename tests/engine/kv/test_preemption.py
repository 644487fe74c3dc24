"""A pool too small for everyone: requests are thrown out and start anew, and blocks that others gave up are reused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.v1.request import RequestStatus

from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from . import reference
from .replay import Recorder, asking, head_file, prompts, replay

pytestmark = pytest.mark.engine
NOISE = 1e-3
KINDS: list[Any] = [
    "off",
    {"method": "snapkv", "budget": 128},
    {"method": "observed", "budget": 96},
    {"method": "streaming_llm", "budget": 96},
    {"method": "razor_observed", "budget": 128},
    {"method": "keydiff", "budget": 96, "per_head": True},
    "off",
    {"method": "knorm", "keep": 0.5, "defer": True},
    {"method": "keyformer", "budget": 96, "defer": False},
]
LENGTHS = (60, 170, 120, 180, 150, 190, 40, 150, 160)
TOKENS = 150


@pytest.fixture(scope="module", params=[None, {"max_nodes": 12, "adaptive": False}], ids=["no trees", "trees"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json")
    flags = {
        "block_size": 32,
        "max_model_len": 352,
        "max_num_batched_tokens": 128,
        "num_gpu_blocks_override": 28,  # two groups of layers: 432 tokens of a whole cache
        "additional_config": {"thriftree": {"kv": {"heads": heads}}},
    }
    with engine(str(tiny.ensure("llama-gqa")), request.param, **flags) as here:
        yield here


def test_equals_torch(running: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference.load(str(tiny.ensure("llama-gqa")))
    pool = running.scheduler.kv_cache_manager.block_pool
    before, first = pool.get_num_free_blocks(), running._serial
    texts = [text[:5] * (len(text) // 10) + text[len(text) // 2 :] for text in prompts(*LENGTHS, seed=9)]
    asks = [Ask(text, asking(kv, "auto", TOKENS), i) for i, (text, kv) in enumerate(zip(texts, KINDS, strict=True))]
    recorder = Recorder(running, monkeypatch)
    out = 0

    def nothing_is_kept() -> None:
        """Of a request that was thrown out and waits: neither by the worker nor by the scheduler's side."""
        nonlocal out
        for request in running.scheduler.requests.values():
            if request.status is RequestStatus.PREEMPTED:
                blocks = running.scheduler.kv_cache_manager.get_block_ids(request.request_id)
                assert request.request_id not in running.runner._caches and not any(blocks)
                out += running.scheduler._manager.plan(request) is not None

    answers = running.run(asks, nothing_is_kept)
    running.settle()
    assert pool.get_num_free_blocks() == before
    assert not running.runner._caches
    anew = 0
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        record = recorder.of(first + i)
        anew += len(record) > 1 and any(part.kept for part in record[:-1])
        worst, flips = replay(model, running, record, ask, answer)
        assert worst < NOISE, (i, [part.chunks for part in record])
        assert flips <= 8
    assert out >= 3 and anew >= 3, "few requests started anew after rows were dropped: this test says little"
