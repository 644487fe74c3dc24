"""What compression holds beside the cache: a formula, against what a running engine really has; and room for both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thriftree.plugins.engine import worker
from thriftree.plugins.engine.kv.side_memory import Layer, SideMemory
from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from .replay import asking, head_file, prompts

LAYER = Layer(heads=3, query_heads=9, dim=64, item=4, block=128, page=128 * 3 * 2 * 64 * 4)


def test_the_default_model_by_hand() -> None:
    """30 layers of 3 KV heads and 9 query heads, float32: positions and sums, 8 queries kept and 2 passing."""
    side = SideMemory.of([LAYER] * 30, 8, True)
    assert side.cached == 30 * 3 * 2 * 64 * 4
    assert side.token == 30 * 3 * (4 + 4 + 8 / 128)
    assert side.request == 30 * 9 * 64 * 4 * (8 + 2)
    assert SideMemory.of([LAYER] * 30, 0, False).token == 30 * 3 * (4 + 8 / 128)
    assert side.held(1000, 2) == round(side.token * 1000) + 2 * side.request
    assert side.held(1000, 1) / (1000 * side.cached) < 0.031, "the target is 3 % where a request holds 1,000 tokens"


@given(st.integers(1 << 20, 1 << 40), st.integers(1, 4096), st.integers(33, 400), st.integers(0, 64), st.booleans())
def test_both_fit(total: int, requests: int, least: int, window: int, sums: bool) -> None:
    side = SideMemory.of([LAYER] * 4, window, sums)
    room = side.room(total, requests, least)
    assert 0 < room < total
    running = min(requests, int(total / (side.cached * least + side.request)))
    both = room + side.held(int(room / side.cached), running)
    assert both <= total + 4 and both >= total - side.cached - side.token - 4


def tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list):
        for one in thing:
            yield from tensors(one)


def held_by(cache: Any) -> int:
    """Every tensor that a request's cache keeps, whatever it is called."""
    things = [*vars(cache).values(), *(value for rows in cache.groups for value in vars(rows).values())]
    things += [] if cache.ring is None else list(vars(cache.ring).values())
    return sum(tensor.nbytes for thing in things for tensor in tensors(thing))


@dataclass
class Started:
    engine: Engine
    told: list[str]  # what the worker's log says of it


@pytest.fixture(scope="module", params=[False, True], ids=["one group", "groups with retrieval heads"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json") if request.param else "off"
    told: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: told.append(record.getMessage())
    ours = {"thriftree": {"kv": {"heads": heads}}}
    flags = {"block_size": 32, "max_num_batched_tokens": 128, "additional_config": ours}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.logger, "handlers", [handler])
        patch.setattr(worker.logger, "disabled", False)
        patch.setattr(worker.logger, "_cache", {})  # of levels that are on: an engine before this one has asked
        patch.setattr(worker.logger, "level", logging.INFO)
        with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 8, "adaptive": False}, **flags) as here:
            yield Started(here, told)


@pytest.mark.engine
def test_cache_and_side_memory_fit_in_what_was_given(started: Started) -> None:
    """1 GiB and 16 requests at once (`engines`)."""
    side, config = started.engine.runner.side_memory(), started.engine.scheduler.kv_cache_config
    groups = len(config.kv_cache_groups)
    block = max(group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in config.kv_cache_groups)
    cache = config.num_blocks * block  # groups share the blocks
    both = cache + side.held(config.num_blocks * 32 // groups, 16)
    assert (1 << 30) - 2 * groups * block < both <= 1 << 30
    (line,) = [line for line in started.told if "beside the cache" in line]
    assert line.endswith("of 1024 MiB") and f"{cache >> 20}" in line


@pytest.mark.engine
@pytest.mark.parametrize("per_head", [False, True])
def test_no_more_is_held_than_the_formula_says(started: Started, per_head: bool) -> None:
    """The default method and others that add up attention, at every step; and nearly as much at the most."""
    running, runner = started.engine, started.engine.runner
    side, pool = runner.side_memory(), running.scheduler.kv_cache_manager.block_pool
    groups, shares = len(running.scheduler.kv_cache_config.kv_cache_groups), []

    def look() -> None:
        caches = [cache for name, cache in runner._caches.items() if name in running.scheduler.requests]
        if caches:
            tokens = (pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) * 32 // groups
            shares.append(sum(map(held_by, caches)) / side.held(tokens, len(caches)))

    method = runner.compression.terms.method
    kinds = [{"method": name, "budget": 160, "per_head": per_head} for name in (method, "h2o", method)]
    texts = prompts(400, 300, 350, seed=3)
    running.run([Ask(text, asking(kind, "auto", 60)) for kind, text in zip(kinds, texts, strict=True)], look)
    assert len(shares) > 10
    assert max(shares) <= 1
    assert max(shares) > 0.6, "the formula says far too much"
    running.settle()
    assert not runner._caches
