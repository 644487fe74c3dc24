"""Sampling the engine's own numbers: rarely, briefly, and never at the cost of a scrape."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from thriftree.server import engine_stats
from thriftree.server.engine_stats import DrafterStats, SelectionFailures
from thriftree.server.metrics import Metrics


def gauge(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("thriftree_drafter_state_bytes")


async def test_sums_workers_and_asks_at_most_once_in_a_while() -> None:
    asked: list[str] = []

    async def rpc(method: str) -> list[Any]:
        asked.append(method)
        return [{"state_bytes": 3}, {"state_bytes": 4}]

    metrics = Metrics()
    stats = DrafterStats(metrics)
    await stats.sample()  # before there is an engine
    stats.rpc = rpc
    for _ in range(3):
        await stats.sample()
    assert asked == ["thrift_stats"]
    assert gauge(metrics) == 7


async def test_an_engine_without_the_call_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_stats, "_EVERY_SECONDS", 0.0)
    asked = 0

    async def rpc(method: str) -> list[Any]:
        nonlocal asked
        asked += 1
        raise AttributeError(method)

    stats = DrafterStats(Metrics())
    stats.rpc = rpc
    await stats.sample()
    await stats.sample()
    assert asked == 1


async def test_a_stuck_engine_does_not_hold_the_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_stats, "_PATIENCE_SECONDS", 0.01)

    async def rpc(method: str) -> list[Any]:
        await asyncio.Event().wait()
        return []

    metrics = Metrics()
    stats = DrafterStats(metrics)
    stats.rpc = rpc
    await asyncio.wait_for(stats.sample(), 2)
    assert gauge(metrics) == 0


async def test_failures_are_counted_once_whatever_ranks_and_scrapes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_stats, "_EVERY_SECONDS", 0.0)
    said: list[list[Any]] = [[{}, {}], [{"aim": 2}, {"aim": 3, "tome": 1}], [{"aim": 3}, {}], [{"aim": 5, "tome": 1}]]

    async def rpc(method: str) -> list[Any]:
        assert method == "__thrift_vision_failures__"
        return said.pop(0)

    metrics = Metrics()
    stats = SelectionFailures(metrics)
    stats.rpc = rpc
    seen = []
    while said:
        await stats.sample()
        seen.append([failures(metrics, method) for method in ("aim", "tome")])
    assert seen == [[0, 0], [3, 1], [3, 1], [5, 1]]


def failures(metrics: Metrics, method: str) -> float | None:
    return metrics.registry.get_sample_value("thriftree_visual_selection_failures_total", {"method": method})
