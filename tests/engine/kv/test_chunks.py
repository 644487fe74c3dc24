"""Steps of any size: prompts in chunks of one row and of many, in any order, beside drafts, equal plain torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from . import reference
from .replay import Recorder, asking, head_file, prompts, replay

pytestmark = pytest.mark.engine
NOISE = 1e-3
KINDS: list[dict[str, Any]] = [
    {"method": "observed"},
    {"method": "keyformer", "defer": False},
    {"method": "snapkv", "defer": False},
    {"method": "razor_observed"},
    {"method": "expected_attention"},
    {"method": "h2o", "per_head": True, "defer": False},
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json")
    flags = {
        "block_size": 32,
        "max_num_batched_tokens": 256,
        "additional_config": {"thriftree": {"kv": {"heads": heads}}},
    }
    with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 8, "adaptive": False}, **flags) as here:
        yield here


@pytest.mark.parametrize("seed", range(3))
def test_equals_torch(running: Engine, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    scheduler, model, first = running.scheduler, reference.load(str(tiny.ensure("llama-gqa"))), running._serial
    monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", 1)
    recorder = Recorder(running, monkeypatch)
    texts = prompts(*(chance.randint(150, 260) for _ in KINDS), seed=seed)
    asks = [Ask(text, asking({**kind, "budget": 96}, "auto", 40)) for text, kind in zip(texts, KINDS, strict=True)]

    def another_size() -> None:
        scheduler.max_num_scheduled_tokens = chance.choice((1, 2, 3, 17, 65, 66, 130, 256))

    answers = running.run(asks, another_size)
    assert any(1 in part.chunks[:2] for i in range(len(KINDS)) for part in recorder.of(first + i))
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        record = recorder.of(first + i)
        worst, flips = replay(model, running, record, ask, answer)
        assert worst < NOISE, (KINDS[i], record[0].chunks)
        assert flips <= 8, (KINDS[i], record[0].chunks)


def test_equal_tokens_tie_alike_whatever_the_chunks(running: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first layer, equal tokens have equal norms up to rounding, and that hangs on the sizes of chunks."""
    chance, scheduler, first = random.Random(3), running.scheduler, running._serial
    text = [chance.choice((7, 70, 170, 210, 240)) for _ in range(230)]
    recorder = Recorder(running, monkeypatch)
    for size in (256, 1, 7, 64, 130):
        monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", size)
        assert running.engine.reset_prefix_cache()
        running.run([Ask(text, asking({"method": "knorm", "budget": 96, "defer": True}, "off", 4))])
    kept = [recorder.of(first + i)[0].kept[0][0] for i in range(5)]
    for heads in kept[1:]:
        assert all(torch.equal(one, other) for one, other in zip(heads, kept[0], strict=True))
