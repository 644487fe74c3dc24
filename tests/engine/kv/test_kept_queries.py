"""Queries are kept while an event is near that will look at them, and at no other time."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.engine.kv.request_cache import DroppingCache
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.window import Window

pytestmark = pytest.mark.engine
WINDOW = 32


class Group:
    """A group of layers that notes which queries its events see."""

    def __init__(self, window: Window) -> None:
        self.window, self.start, self.group = window, 0, SimpleNamespace(names=("layer",))
        self.events: list[int] = []

    def compact(self, blocks: Any, length: int, ring: Any) -> int:
        assert ring is not None
        count = min(ring.count, WINDOW)
        assert count == min(length, WINDOW)
        seen = ring.newest(0, length, count, 1)[0, 0, :, 0].tolist()
        assert seen == list(range(length - count, length)), "the newest queries, in order"
        self.start = self.window.start(length)
        self.events.append(length)
        return 1


def play(block: int, budgets: list[int], prompt: int, defer: bool, chunks: list[tuple[int, int, int]]) -> DroppingCache:
    """Steps of so many rows, then drafts, of which some are accepted; answers begin after the prompt."""
    groups: list[Any] = [Group(Window(budget, block, prompt, defer)) for budget in budgets]
    plan = Plan("snapkv", registry.configure("snapkv"), 0, 4, 32, defer, False, prompt)
    cache, computed, idle = DroppingCache(plan, groups, 1), 0, 0
    for chunk, drafts, accepted in chunks:
        if computed + chunk < prompt:
            drafts = 0
        elif computed >= prompt:
            chunk = 1
        drafts = min(drafts, max(0, cache.levels(computed + chunk)))
        length = computed + chunk + min(accepted, drafts)
        wanted = cache.queries_wanted(chunk, computed, drafts)
        if wanted:
            first = computed + chunk - wanted
            rows = torch.arange(first, length, dtype=torch.float32).view(1, -1, 1, 1)
            cache.see(rows, first, lambda group: torch.empty(0))
        cache.compact(length, lambda group: torch.empty(0))
        idle += cache.ring is None
        computed = length
    cache.idle = idle
    return cache


@pytest.mark.parametrize("seed", range(150))
def test_every_event_sees_the_newest(seed: int) -> None:
    chance = random.Random(seed)
    prompt, most = chance.randint(1, 700), chance.choice((1, 5, 40, 300))
    budgets = [chance.randint(60, 300) for _ in range(chance.randint(1, 3))]
    chunks = [(chance.randint(1, most), chance.randint(0, 8), chance.randint(0, 8)) for _ in range(prompt + 400)]
    cache = play(chance.choice((16, 32, 128)), budgets, prompt, chance.random() < 0.5, chunks)
    assert all(len(group.events) >= 1 for group in cache.groups)


def test_in_blocks_of_128_three_quarters_of_an_answer_hold_none() -> None:
    cache = play(128, [200], 400, True, [(400, 0, 0), *[(1, 0, 0)] * 640])
    assert len(cache.groups[0].events) == 6
    assert cache.idle >= 640 * 3 // 4 - WINDOW
